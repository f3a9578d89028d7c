#pragma once

#include <immintrin.h>

#include "kernels/avx2/simd.h"

// Keeping vectors in registers, beside unroll() of simd.h.
namespace mixed_kv::kernels::avx2 {
namespace {

// x, loaded once: else the compiler repeats the load as an operand of every instruction that takes x, and
// loads, two a cycle, become the limit.
inline __attribute__((always_inline)) __m256 in_register(__m256 x) noexcept {
    asm("" : "+x"(x));
    return x;
}

inline __m256 pair_sums(__m256 a, __m256 b) noexcept {
    return _mm256_add_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
}

// The sums of the lanes of four vectors. Half the instructions of horizontal additions.
inline __m128 sum_each(__m256 v0, __m256 v1, __m256 v2, __m256 v3) noexcept {
    const __m256 a = pair_sums(v0, v1), b = pair_sums(v2, v3);
    const __m256 s = _mm256_add_ps(_mm256_shuffle_ps(a, b, 0x44), _mm256_shuffle_ps(a, b, 0xee));
    return _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
}

}  // namespace
}  // namespace mixed_kv::kernels::avx2
