#pragma once

#include <cstddef>

#include "kernels/contract.h"

// Algorithms that instruction sets share: templates over the lane operations of a set (`Lanes` in
// src/kernels/neon/lanes.h is the example). Everything here has internal linkage, so that each file compiles
// its own copy with its own instructions and offers none to the linker.
namespace mixed_kv::kernels::shared {
namespace {

constexpr int kTileRows = 4;       // query rows of a register tile
constexpr int kUnpackRows = 16;    // from here on a page is unpacked once, not once per tile of rows
constexpr int kPrefetchLine = 64;  // bytes

template <int kN>
struct Int {
    static constexpr int value = kN;
};

// Calls f(Int<0>), ..., f(Int<kN - 1>). Unlike a loop it makes every index a constant from the start, which
// keeps arrays of sums in registers through to the end of a tile.
template <int kN, int kI = 0, typename F>
inline __attribute__((always_inline)) void unroll(F&& f) noexcept {
    if constexpr (kI < kN) {
        f(Int<kI>{});
        unroll<kN, kI + 1>(f);
    }
}

// Calls f(r, Int<n>{}) with the first row and the number of rows of each tile, kMax at a time.
template <int kMax, typename F>
inline void for_row_tiles(int n_rows, F&& f) noexcept {
    int r = 0;
    for (; r + kMax <= n_rows; r += kMax) {
        f(r, Int<kMax>{});
    }
    unroll<kMax - 1>([&](auto less_one) {
        constexpr int kRest = decltype(less_one)::value + 1;
        if (n_rows - r == kRest) f(r, Int<kRest>{});
    });
}

// Fetches the next page while this one is computed, a tile's share at a time: pages are not neighbours in
// memory, so the hardware does not follow.
template <typename Lanes, bool kFar = false>  // kFar: to L2
class Ahead {
  public:
    // Bytes [from, to) of the next page, in the time of n_tiles tiles.
    Ahead(const std::byte* next, std::size_t from, std::size_t to, int n_tiles) noexcept
        : at_(next != nullptr ? next + from : next), end_(next != nullptr ? next + to : next) {
        constexpr int kStep = kLines * kPrefetchLine;
        per_tile_ =
            ((static_cast<std::ptrdiff_t>(to - from) + n_tiles - 1) / n_tiles + kStep - 1) / kStep * kStep;
    }
    // Up to kLines - 1 lines beyond the end are asked for, which does no harm.
    void tile() noexcept {
        const std::ptrdiff_t left = end_ - at_;
        const std::byte* const stop = at_ + (left < per_tile_ ? left : per_tile_);
        for (; at_ < stop; at_ += kLines * kPrefetchLine) {
            unroll<kLines>([this](auto i) {
                const std::byte* line = at_ + i.value * kPrefetchLine;
                if constexpr (kFar) {
                    Lanes::prefetch_far(line);
                } else {
                    Lanes::prefetch(line);
                }
            });
        }
    }

  private:
    static constexpr int kLines = 4;
    const std::byte *at_, *end_;
    std::ptrdiff_t per_tile_;
};

}  // namespace
}  // namespace mixed_kv::kernels::shared
