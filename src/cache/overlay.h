#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>

// Overlay rows of a cold page: exact rows, sorted by cell, in an array of their own.
namespace mixed_kv::cache {

// Rows that fit the array of an overlay of n rows. Few sizes, so that arrays are reused and rarely move when
// rows come one by one; exact for the usual handful of sinks.
constexpr int overlay_capacity(int n) noexcept {
    constexpr int kSizes[] = {0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 40, 48, 56, 64};
    for (const int size : kSizes) {
        if (n <= size) return size;
    }
    return 64;
}

// Place of a cell's row in the array.
inline int overlay_index(std::uint64_t overlay, int cell) noexcept {
    return std::popcount(overlay & ((std::uint64_t{1} << cell) - 1));
}

// Calls fn(cell) for each member of a set of cells.
template <typename Fn>
void for_each_cell(std::uint64_t cells, Fn&& fn) {
    for (; cells != 0; cells &= cells - 1) fn(std::countr_zero(cells));
}

}  // namespace mixed_kv::cache
