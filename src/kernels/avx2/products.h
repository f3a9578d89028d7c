#pragma once

#include "kernels/avx2/simd.h"

// Products of pairs of 16-bit integers, added to eight 32-bit sums: two instructions on AVX2, one with
// AVX-VNNI, for which the cold kernels are compiled a second time (src/kernels/avxvnni). The sums are the
// same.
namespace mixed_kv::kernels::avx2 {
namespace {

#if defined(__AVXVNNI__)

// As assembly: of the intrinsic GCC 12 copies the sum before and after, and with AVX-512 it would take that
// encoding.
inline __m256i add_products(__m256i sum, __m256i codes, __m256i q) noexcept {
    asm("%{vex%} vpdpwssd %2, %1, %0" : "+x"(sum) : "x"(codes), "x"(q));
    return sum;
}
inline void add_products_in_place(__m256i& sum, __m256i a, __m256i b) noexcept {
    sum = add_products(sum, a, b);
}

#else

// The empty asm holds the sum in a register: GCC 12 would regroup the additions and keep more sums than there
// are registers.
inline __m256i add_products(__m256i sum, __m256i codes, __m256i q) noexcept {
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(codes, q));
    asm("" : "+x"(sum));
    return sum;
}
// The addition is asm: a sum merely held by an empty asm is copied once per addition here, a third of all
// instructions.
inline void add_products_in_place(__m256i& sum, __m256i a, __m256i b) noexcept {
    const __m256i product = _mm256_madd_epi16(a, b);
    asm("vpaddd %1, %0, %0" : "+x"(sum) : "x"(product));
}

#endif

}  // namespace
}  // namespace mixed_kv::kernels::avx2
