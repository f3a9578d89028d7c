// Cold keys with a K-shift still to apply. RoPE is linear in pairs of channels, so q times a turned key is
// the query turned the other way times the key as stored.
#include <algorithm>
#include <bit>

#include "attention/item_runner.h"
#include "attention/page_access.h"

namespace mixed_kv::attention {

// q for keys that need this turn; neighbouring pages mostly share it. null: none.
const float* ItemRunner::turned_q(const float* turn) noexcept {
    if (turn == nullptr) return s_.q;
    if (turn == q_turn_) return s_.q_turned;
    q_turn_ = turn;
    std::copy_n(s_.q, n_rows_ * sizes_.q_stride, s_.q_turned);
    for (int row = 0; row < n_rows_; ++row) {
        turn_query(keys().turns->pairs, turn, s_.q_turned + row * sizes_.q_stride);
    }
    return s_.q_turned;
}

// scores[r][t] of one page: the block once per group of cells, each with its own q; then overlay rows, which
// are up to date.
void ItemRunner::shifted_scores(const PageStep& step) noexcept {
    const PageTable& table = keys();
    const Page& page = *step.k;
    const PageShift& shift = table.shifts[step.page];
    const auto kernel = set_.formats[table.layout.format_index].qk;
    std::uint64_t as_stored = ~page.overlay;
    for (std::uint32_t g = 0; g < page.shift_groups; ++g) as_stored &= ~shift.cells[g];

    bool first = true;
    for (std::uint32_t g = 0; g <= page.shift_groups; ++g) {
        const bool last = g == page.shift_groups;  // those without a group
        const std::uint64_t cells = last ? as_stored : shift.cells[g] & ~page.overlay;
        if (cells == 0) continue;
        const float* q = turned_q(last ? nullptr : table.turns->turn(shift.turn[g]));
        for (int row = 0; row < n_rows_; row += set_.max_rows) {
            const int n_rows = std::min(set_.max_rows, n_rows_ - row);
            float* scores = s_.scores + row * kPageTokens;
            kernels::QkArgs qk{page_data(table, page, tile_->head_kv, args_.head_dim_k, step.n_tokens),
                               q + row * sizes_.q_stride,
                               sizes_.q_stride,
                               n_rows,
                               first ? scores : s_.overlay,
                               s_.kernel};
            qk.keys.next = next_data(table, step, page.state);
            kernel(qk);
            if (first) continue;
            for (std::uint64_t rest = cells; rest != 0; rest &= rest - 1) {
                const int t = std::countr_zero(rest);
                for (int r = 0; r < n_rows; ++r)
                    scores[r * kPageTokens + t] = s_.overlay[r * kPageTokens + t];
            }
        }
        first = false;
    }
    if (page.overlay == 0) return;
    for (int row = 0; row < n_rows_; row += set_.max_rows) {
        const int n_rows = std::min(set_.max_rows, n_rows_ - row);
        set_.qk_f16({overlay_data(table, page, tile_->head_kv, args_.head_dim_k),
                     s_.q + row * sizes_.q_stride, sizes_.q_stride, n_rows, s_.overlay, s_.kernel});
        scatter_columns(s_.overlay, page.overlay, n_rows, s_.scores + row * kPageTokens);
    }
}

// Decoded rows that serve as values (MLA).
void ItemRunner::turn_decoded_keys(const Page& page, std::int64_t index) noexcept {
    const PageTable& table = keys();
    const PageShift& shift = table.shifts[index];
    for (std::uint32_t g = 0; g < page.shift_groups; ++g) {
        for (std::uint64_t rest = shift.cells[g]; rest != 0; rest &= rest - 1) {
            turn_key(table.turns->pairs, table.turns->turn(shift.turn[g]),
                     s_.values + std::countr_zero(rest) * sizes_.v_stride);
        }
    }
}

}  // namespace mixed_kv::attention
