// Cold keys that do not lie in their page as one block: several blocks, rows at other places than their
// cells, or a K-shift still to apply. RoPE is linear in pairs of channels, so q times a turned key is the
// query turned the other way times the key as stored.
#include <algorithm>
#include <bit>

#include "attention/item_runner.h"
#include "attention/page_access.h"

namespace mixed_kv::attention {

// q for keys that need this turn; neighbouring pages mostly share it.
const float* ItemRunner::turned_q(const float* turn) noexcept {
    if (turn == q_turn_) return s_.q_turned;
    q_turn_ = turn;
    std::copy_n(s_.q, n_rows_ * sizes_.q_stride, s_.q_turned);
    for (int row = 0; row < n_rows_; ++row) {
        turn_query(keys().turns->pairs, turn, s_.q_turned + row * sizes_.q_stride);
    }
    return s_.q_turned;
}

// scores[r][t] of these cells of a block, with this q.
void ItemRunner::score_cells(const PageBlock& block, std::uint64_t cells, const float* q) noexcept {
    const auto kernel = set_.formats[block.format].qk;
    for (int row = 0; row < n_rows_; row += set_.max_rows) {
        const int n_rows = std::min(set_.max_rows, n_rows_ - row);
        float* scores = s_.scores + row * kPageTokens;
        kernel({block_data(keys(), block, tile_->head_kv, args_.head_dim_k), q + row * sizes_.q_stride,
                sizes_.q_stride, n_rows, s_.overlay, s_.kernel});
        for (std::uint64_t rest = cells; rest != 0; rest &= rest - 1) {
            const int t = std::countr_zero(rest), at = block.row_of(t);
            for (int r = 0; r < n_rows; ++r) scores[r * kPageTokens + t] = s_.overlay[r * kPageTokens + at];
        }
    }
}

// scores[r][t] of a cold page's blocks: each once, or once per group of cells that share a turn, each with
// its own q. Cells that hold nothing read as zero.
void ItemRunner::block_scores(const PageStep& step) noexcept {
    const Page& page = *step.k;
    const PageTable& table = keys();
    std::fill_n(s_.scores, n_rows_ * kPageTokens, 0.0f);
    std::uint64_t turned = 0;
    for (std::uint32_t g = 0; g < page.shift_groups; ++g) {
        const PageShift& shift = table.shifts[step.page];
        turned |= shift.cells[g];
        const float* q = nullptr;
        for (int i = 0; i < page.n_blocks; ++i) {
            const std::uint64_t cells = page.block(i).cells & shift.cells[g];
            if (cells == 0) continue;
            if (q == nullptr) q = turned_q(table.turns->turn(shift.turn[g]));
            score_cells(page.block(i), cells, q);
        }
    }
    for (int i = 0; i < page.n_blocks; ++i) {
        const std::uint64_t cells = page.block(i).cells & ~turned;
        if (cells != 0) score_cells(page.block(i), cells, s_.q);
    }
}

// Decoded rows that serve as values (MLA).
void ItemRunner::turn_decoded_keys(const Page& page, std::int64_t index) noexcept {
    const PageTable& table = keys();
    const PageShift& shift = table.shifts[index];
    for (std::uint32_t g = 0; g < page.shift_groups; ++g) {
        for (std::uint64_t rest = shift.cells[g] & page.block_cells(); rest != 0; rest &= rest - 1) {
            turn_key(table.turns->pairs, table.turns->turn(shift.turn[g]),
                     s_.values + std::countr_zero(rest) * sizes_.v_stride);
        }
    }
}

}  // namespace mixed_kv::attention
