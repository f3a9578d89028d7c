// Kernels read K and V as they are stored, some query rows at a time. The blocks of rows of one page follow
// each other, so that only the first reads memory.
#include <algorithm>
#include <bit>

#include "attention/item_runner.h"
#include "attention/page_access.h"

namespace mixed_kv::attention {

int ItemRunner::rows_per_call(const Page& page) const noexcept {
    return is_fp16(page) ? set_.fp16_rows : set_.max_rows;
}

// scores[r][t] of one page. Overlay rows of a cold page are scored apart and replace what the block says of
// these cells.
void ItemRunner::stored_scores(const PageStep& step) noexcept {
    const PageTable& table = keys();
    const Page& page = *step.k;
    if (page.shift_groups != 0) {
        shifted_scores(step);
        return;
    }
    const auto kernel = is_fp16(page) ? set_.qk_f16 : set_.formats[table.layout.format_index].qk;
    const int block = rows_per_call(page);
    for (int row = 0; row < n_rows_; row += block) {
        const int n_rows = std::min(block, n_rows_ - row);
        float* scores = s_.scores + row * kPageTokens;
        kernels::QkArgs qk{page_data(table, page, tile_->head_kv, args_.head_dim_k, step.n_tokens),
                           s_.q + row * sizes_.q_stride,
                           sizes_.q_stride,
                           n_rows,
                           scores,
                           s_.kernel};
        // FP16 pages wait for memory: while scores are computed the values are fetched, and then the next
        // keys.
        qk.keys.next = fp16_pair(step) ? values().layout.head_data(*step.v, tile_->head_kv)
                                       : next_data(table, step, page.state);
        kernel(qk);
        if (is_fp16(page) || page.overlay == 0) continue;
        qk.keys = overlay_data(table, page, tile_->head_kv, args_.head_dim_k);
        qk.scores = s_.overlay;
        set_.qk_f16(qk);
        scatter_columns(s_.overlay, page.overlay, n_rows, scores);
    }
}

// o += p * V of one page. Weights of overlay rows are moved to a product with these rows.
void ItemRunner::stored_values(const PageStep& step) noexcept {
    const PageTable& table = values();
    const Page& page = *step.v;
    const auto kernel = is_fp16(page) ? set_.pv_f16 : set_.formats[table.layout.format_index].pv;
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
        kernels::PvArgs pv{page_data(table, page, tile_->head_kv, args_.head_dim_v, step.n_tokens),
                           p,
                           n_rows,
                           sum + row * sizes_.o_stride,
                           sizes_.o_stride,
                           s_.kernel};
        pv.values.next = next_data(fp16_pair(step) ? keys() : table, step, page.state);
        pv.mass = s_.l + row;
        kernel(pv);
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
