#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "mixed_kv/fp16.h"

// Which rows may share a block. Its scales serve all of its rows, so rows that are far larger than others (a
// massive activation, a sink in mid-text, a foreign sequence's) would take the others' precision away.
namespace mixed_kv::cache {

// Sizes that leap by more than this factor, when rows are sorted by size, part rows that must not share a
// block. Rows of one sequence of ordinary text lie closer (bundled models: docs/quality.md).
inline constexpr float kLeap = 2.5f;

// Rows smaller than most that are kept beside a block of larger keys, at the most; more join it.
inline constexpr int kMostSmallRows = 8;

// Sets of rows, each for a block of its own; rows in none are to be kept exactly.
struct RowClasses {
    static constexpr int kMost = 3;
    int n = 0;
    std::uint64_t cells[kMost] = {};

    std::uint64_t all() const noexcept {
        std::uint64_t sum = 0;
        for (int i = 0; i < n; ++i) sum |= cells[i];
        return sum;
    }
};

// The sizes of up to 64 rows: per head the largest magnitude over the median row's, then the largest over
// heads.
class RowSizes {
  public:
    explicit RowSizes(std::uint64_t cells) noexcept : cells_(cells) {}

    // One head of every row: row_at(t) is fp16 [head_dim].
    template <typename RowAt>
    void add_head(int head_dim, RowAt&& row_at) noexcept {
        std::uint16_t largest[64] = {};
        for (std::uint64_t rest = cells_; rest != 0; rest &= rest - 1) {
            const int t = __builtin_ctzll(rest);
            largest[t] = largest_magnitude(row_at(t), head_dim);
        }
        add(largest);
    }
    // All heads of every row, side by side: row_at(t) is fp16 [n_head][head_dim]. Reads each row from its
    // start to its end, which memory prefers to a head of all rows after the other.
    template <typename RowAt>
    void add_rows(int n_head, int head_dim, RowAt&& row_at) noexcept {
        constexpr int kHeads = 16;
        for (int first = 0; first < n_head; first += kHeads) {
            const int n = std::min(n_head - first, kHeads);
            std::uint16_t largest[kHeads][64] = {};
            for (std::uint64_t rest = cells_; rest != 0; rest &= rest - 1) {
                const int t = __builtin_ctzll(rest);
                const fp16_t* row = row_at(t) + static_cast<std::ptrdiff_t>(first) * head_dim;
                for (int head = 0; head < n; ++head)
                    largest[head][t] = largest_magnitude(row + head * head_dim, head_dim);
            }
            for (int head = 0; head < n; ++head) add(largest[head]);
        }
    }
    // Rows in classes of at least min_rows, smallest first; joins what keys would not gain from (is_key) and
    // zero rows.
    RowClasses classes(int min_rows, bool is_key) const noexcept;

  private:
    static std::uint16_t largest_magnitude(const fp16_t* row, int n) noexcept;
    void add(const std::uint16_t* largest) noexcept;

    std::uint64_t cells_;
    float sizes_[64] = {};
};

}  // namespace mixed_kv::cache
