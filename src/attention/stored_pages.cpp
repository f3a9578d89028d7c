// Kernels read K and V as they are stored, some query rows at a time, which follow each other, so that only
// the first reads memory.
#include <algorithm>
#include <bit>

#include "attention/item_runner.h"
#include "attention/page_access.h"

namespace mixed_kv::attention {

int ItemRunner::rows_per_call(const Page& page) const noexcept {
    return is_fp16(page) ? set_.fp16_rows : set_.max_rows;
}

// scores[r][t] of one page.
void ItemRunner::stored_scores(const PageStep& step) noexcept {
    const Page& page = *step.k;
    if (!is_fp16(page) && (page.shift_groups != 0 || !page.is_plain())) {
        block_scores(step);
        overlay_scores(page);
        return;
    }
    const PageTable& table = keys();
    const auto kernel = is_fp16(page) ? set_.qk_f16 : set_.formats[page.first.format].qk;
    const int block = rows_per_call(page);
    const kernels::PageData data =
        is_fp16(page) ? fp16_data(table, page, tile_->head_kv, args_.head_dim_k, step.n_tokens)
                      : block_data(table, page.first, tile_->head_kv, args_.head_dim_k);
    for (int row = 0; row < n_rows_; row += block) {
        const int n_rows = std::min(block, n_rows_ - row);
        kernels::QkArgs qk{data,   s_.q + row * sizes_.q_stride,  sizes_.q_stride,
                           n_rows, s_.scores + row * kPageTokens, s_.kernel};
        // FP16 pages wait for memory: while scores are computed the values are fetched, and then the next
        // keys.
        qk.keys.next = fp16_pair(step) ? values().layout.head_data(*step.v, tile_->head_kv)
                                       : next_data(table, step, page.state);
        kernel(qk);
    }
    if (!is_fp16(page)) overlay_scores(page);
}

// Overlay rows are scored apart and replace what the block says of these cells.
void ItemRunner::overlay_scores(const Page& page) noexcept {
    if (page.overlay == 0) return;
    const kernels::PageData data = overlay_data(keys(), page, tile_->head_kv, args_.head_dim_k);
    for (int row = 0; row < n_rows_; row += set_.max_rows) {
        const int n_rows = std::min(set_.max_rows, n_rows_ - row);
        set_.qk_f16({data, s_.q + row * sizes_.q_stride, sizes_.q_stride, n_rows, s_.overlay, s_.kernel});
        scatter_columns(s_.overlay, page.overlay, n_rows, s_.scores + row * kPageTokens);
    }
}

// o += p * V of one page. Weights of overlay rows are moved to a product with these rows.
void ItemRunner::stored_values(const PageStep& step) noexcept {
    const PageTable& table = values();
    const Page& page = *step.v;
    float* sum = value_sum(page);
    const int block = rows_per_call(page);
    for (int row = 0; row < n_rows_; row += block) {
        const int n_rows = std::min(block, n_rows_ - row);
        float* p = s_.scores + row * kPageTokens;
        if (!is_fp16(page) && page.overlay != 0) {
            extract_columns(p, page.overlay, n_rows, s_.overlay);
            set_.pv_f16({overlay_data(table, page, tile_->head_kv, args_.head_dim_v), s_.overlay, n_rows,
                         s_.o + row * sizes_.o_stride, sizes_.o_stride, s_.kernel});
        }
        kernels::PvArgs pv{{}, p, n_rows, sum + row * sizes_.o_stride, sizes_.o_stride, s_.kernel};
        pv.mass = s_.l + row;
        if (is_fp16(page)) {
            pv.values = fp16_data(table, page, tile_->head_kv, args_.head_dim_v, step.n_tokens);
            pv.values.next = next_data(fp16_pair(step) ? keys() : table, step, page.state);
            set_.pv_f16(pv);
            continue;
        }
        const bool is_plain = page.is_plain();
        for (int i = 0; i < page.n_blocks; ++i) {
            const PageBlock& part = page.block(i);
            pv.values = block_data(table, part, tile_->head_kv, args_.head_dim_v);
            pv.values.next = next_data(table, step, page.state);
            if (!is_plain) {
                take_columns(p, part, n_rows, s_.overlay);
                pv.p = s_.overlay;
            }
            set_.formats[part.format].pv(pv);
        }
    }
}

// Whether K and V lie alike, so that each can be fetched while the other is read.
bool ItemRunner::fp16_pair(const PageStep& step) const noexcept {
    return is_fp16(*step.k) && step.v->state == step.k->state && args_.head_dim_k == args_.head_dim_v;
}

// What the same kernel reads next, as far as the plan tells: only a hint to fetch it ahead.
const std::byte* ItemRunner::next_data(const PageTable& table, const PageStep& step,
                                       PageState state) const noexcept {
    if (step.page + 1 >= page_end_ || plan_.kind(*tile_, step.page + 1) == MaskPages::hidden) return nullptr;
    const Page& next = page_at(table, step.page + 1);
    return next.state == state ? table.layout.head_data(next, tile_->head_kv) : nullptr;
}

}  // namespace mixed_kv::attention
