// Few query rows: kernels read K and V as they are stored.
#include <algorithm>
#include <bit>

#include "attention/item_runner.h"
#include "attention/page_access.h"

namespace mixed_kv::attention {

// scores[r][t] of one page. Overlay rows of a cold page are scored apart and replace what the block says of
// these cells.
void ItemRunner::decode_scores(const PageStep& step) noexcept {
    const PageTable& table = keys();
    const Page& page = *step.k;
    if (page.state == PageState::empty) {
        std::fill_n(s_.scores, n_rows_ * kPageTokens, 0.0f);
        return;
    }
    kernels::QkArgs qk{page_data(table, page, tile_->head_kv, args_.head_dim_k, step.n_tokens),
                       s_.q,
                       sizes_.q_stride,
                       n_rows_,
                       s_.scores,
                       s_.kernel};
    if (is_fp16(page)) {
        set_.qk_f16(qk);
        return;
    }
    set_.formats[table.layout.format_index].qk(qk);
    if (page.overlay != 0) {
        qk.keys = overlay_data(table, page, tile_->head_kv, args_.head_dim_k);
        qk.scores = s_.overlay;
        set_.qk_f16(qk);
        scatter_columns(s_.overlay, page.overlay, n_rows_, s_.scores);
    }
}

// o += p * V of one page.
void ItemRunner::decode_values(const PageStep& step) noexcept {
    const PageTable& table = values();
    const Page& page = *step.v;
    kernels::PvArgs pv{page_data(table, page, tile_->head_kv, args_.head_dim_v, step.n_tokens),
                       s_.scores,
                       n_rows_,
                       s_.o,
                       sizes_.o_stride,
                       s_.kernel};
    if (is_fp16(page)) {
        set_.pv_f16(pv);
        return;
    }
    if (page.overlay != 0) {
        extract_columns(s_.scores, page.overlay, n_rows_, s_.overlay);
        kernels::PvArgs overlay = pv;
        overlay.values = overlay_data(table, page, tile_->head_kv, args_.head_dim_v);
        overlay.p = s_.overlay;
        set_.pv_f16(overlay);
    }
    pv.o = value_sum(page);
    set_.formats[table.layout.format_index].pv(pv);
}

}  // namespace mixed_kv::attention
