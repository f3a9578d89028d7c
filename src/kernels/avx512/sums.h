#pragma once

#include "kernels/avx512/simd.h"

// Exact integer sums of codes times 16-bit integers. Such an integer is 256 high + low, two signed bytes;
// vpdpbusd multiplies four codes with four of either and adds them to a 32-bit lane, so a vector of 16 tokens
// (keys) or channels (values) takes two registers per row.
//
// Register tile: up to 4 query rows x 2 (1 or 2 rows: 4) vectors x 2 parts, 16 sums at most, so that every
// code byte is unpacked once per 4 rows; the block stays in L1 while its tiles pass over it.
namespace mixed_kv::kernels::avx512 {
namespace {

// 16 sums. Held as what vpdpbusd adds to: GCC moves a loop's __m512i, eight 64-bit lanes to it, to another
// register before and after each.
using Int32x16 = std::int32_t __attribute__((vector_size(64)));

struct Sum {
    Int32x16 high, low;
};

inline Int32x16 add_products(Int32x16 sum, __m512i codes, const std::byte* part) noexcept {
    return reinterpret_cast<Int32x16>(
        _mm512_dpbusd_epi32(reinterpret_cast<__m512i>(sum), codes, broadcast4(part)));
}

inline void add_products(Sum& sum, __m512i codes, const std::byte* parts) noexcept {
    sum.high = add_products(sum.high, codes, parts);
    sum.low = add_products(sum.low, codes, parts + 4);
}

// Both parts as one integer, of codes that were multiplied by 2^kShift.
template <int kShift>
inline __m512i whole(const Sum& sum, std::int32_t start) noexcept {
    auto high = reinterpret_cast<__m512i>(sum.high), low = reinterpret_cast<__m512i>(sum.low);
    if constexpr (kShift != 0) {
        high = _mm512_srai_epi32(high, kShift);
        low = _mm512_srai_epi32(low, kShift);
    }
    return _mm512_add_epi32(_mm512_add_epi32(_mm512_slli_epi32(high, 8), low), _mm512_set1_epi32(start));
}

// Lines that one step of a tile reads of the codes, and therefore fetches of the next page's.
constexpr int lines_per_step(int bits, int n_vectors) { return (8 * bits * n_vectors + 63) / 64; }

template <int kRows, int kVectors>
using Sums = Sum[kRows][kVectors];

template <int kRows, int kVectors>
inline void clear(Sums<kRows, kVectors>& sum) noexcept {
    unroll<kRows>([&](auto r) {
        unroll<kVectors>([&](auto v) { sum[r.value][v.value] = {Int32x16{}, Int32x16{}}; });
    });
}

}  // namespace
}  // namespace mixed_kv::kernels::avx512
