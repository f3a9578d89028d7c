#pragma once

#include <immintrin.h>

#include "kernels/avx2/simd.h"

// Keeping small arrays of vectors in registers. GCC 12 leaves an array in memory if one of its indices is the
// counter of a loop that it unrolls too late.
namespace mixed_kv::kernels::avx2 {
namespace {

// Calls f(Int<0>), ..., f(Int<kN - 1>): every index is a constant from the start.
template <int kN, int kI = 0, typename F>
inline __attribute__((always_inline)) void unrolled(F&& f) noexcept {
    if constexpr (kI < kN) {
        f(Int<kI>{});
        unrolled<kN, kI + 1>(f);
    }
}

// x, loaded once: else the compiler repeats the load as an operand of every instruction that takes x, and
// loads, two a cycle, become the limit.
inline __attribute__((always_inline)) __m256 in_register(__m256 x) noexcept {
    asm("" : "+x"(x));
    return x;
}

}  // namespace
}  // namespace mixed_kv::kernels::avx2
