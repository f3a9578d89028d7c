#include "cache/row_classes.h"

#include <algorithm>
#include <bit>
#include <limits>

namespace mixed_kv::cache {

namespace {

// 2^15 as binary16: what a block makes of such values may be beyond the largest, 65504. Infinities and NaNs
// are above it, too.
constexpr std::uint16_t kTooLarge = 0x7800;

}  // namespace

// Magnitudes of binary16 order as their bits do.
std::uint16_t RowSizes::largest_magnitude(const fp16_t* row, int n) noexcept {
    std::int16_t largest = 0;  // signed: any x86 has a maximum of these
    for (int i = 0; i < n; ++i) {
        const auto magnitude = static_cast<std::int16_t>(row[i] & 0x7fffu);
        largest = magnitude > largest ? magnitude : largest;
    }
    return static_cast<std::uint16_t>(largest);
}

void RowSizes::add(const std::uint16_t* largest) noexcept {
    std::uint16_t sorted[64];
    int n = 0;
    for (std::uint64_t rest = cells_; rest != 0; rest &= rest - 1) {
        sorted[n++] = largest[std::countr_zero(rest)];
    }
    if (n == 0) return;
    std::nth_element(sorted, sorted + (n - 1) / 2, sorted + n);
    const std::uint16_t median = sorted[(n - 1) / 2];
    // A head that is zero in most rows says nothing of them.
    if (median == 0 || median >= kTooLarge) {
        for (std::uint64_t rest = cells_; rest != 0; rest &= rest - 1) {
            const int t = std::countr_zero(rest);
            if (largest[t] >= kTooLarge) sizes_[t] = std::numeric_limits<float>::infinity();
        }
        return;
    }
    const float unit = 1.0f / fp16_to_fp32(median);
    for (std::uint64_t rest = cells_; rest != 0; rest &= rest - 1) {
        const int t = std::countr_zero(rest);
        const float size = largest[t] >= kTooLarge ? std::numeric_limits<float>::infinity()
                                                   : fp16_to_fp32(largest[t]) * unit;
        sizes_[t] = std::max(sizes_[t], size);
    }
}

RowClasses RowSizes::classes(int min_rows, bool is_key) const noexcept {
    int order[64];
    int n = 0;
    for (std::uint64_t rest = cells_; rest != 0; rest &= rest - 1) order[n++] = std::countr_zero(rest);
    std::sort(order, order + n, [this](int a, int b) { return sizes_[a] < sizes_[b]; });

    // Groups of rows between which sizes leap.
    struct Group {
        std::uint64_t cells = 0;
        int n = 0;
    };
    Group groups[64];
    int n_groups = 0;
    float last = 0.0f;
    for (int i = 0; i < n; ++i) {
        const float size = sizes_[order[i]];
        const bool is_number = size < std::numeric_limits<float>::infinity();
        const bool leaps = size > kLeap * last && (last > 0.0f || !is_number);
        if (n_groups == 0 || leaps) ++n_groups;
        Group& group = groups[n_groups - 1];
        group.cells |= std::uint64_t{1} << order[i];
        ++group.n;
        last = size;
    }
    // Rows that no codec takes are the last group, or all there is.
    if (n_groups > 0 && last == std::numeric_limits<float>::infinity()) --n_groups;
    if (n_groups == 0) return {};

    // The smaller rows of values have scales of their own; of keys, a few can be kept.
    int largest = 0;
    for (int i = 1; i < n_groups; ++i) largest = groups[i].n > groups[largest].n ? i : largest;
    int n_small = 0;
    for (int i = 0; i < largest; ++i) n_small += groups[i].n < min_rows ? groups[i].n : 0;
    const bool join_small = !is_key || n_small > kMostSmallRows;

    RowClasses result;
    std::uint64_t joined = 0;
    for (int i = 0; i < n_groups && result.n < RowClasses::kMost; ++i) {
        Group group = groups[i];
        if (i < largest && join_small && group.n < min_rows) {
            joined |= group.cells;
            continue;
        }
        if (i == largest) {
            group.cells |= joined;
            group.n += std::popcount(joined);
        }
        if (group.n >= min_rows) result.cells[result.n++] = group.cells;
    }
    return result;
}

}  // namespace mixed_kv::cache
