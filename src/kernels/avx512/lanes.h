#pragma once

#include "kernels/avx512/simd.h"

// Vectors against each other: their sums or maxima, and the transpose of 16 x 16 lanes.
namespace mixed_kv::kernels::avx512 {
namespace {

struct Add {
    __m512 operator()(__m512 a, __m512 b) const noexcept { return _mm512_add_ps(a, b); }
    __m256 operator()(__m256 a, __m256 b) const noexcept { return _mm256_add_ps(a, b); }
    __m128 operator()(__m128 a, __m128 b) const noexcept { return _mm_add_ps(a, b); }
};
struct Max {
    __m512 operator()(__m512 a, __m512 b) const noexcept { return _mm512_max_ps(a, b); }
    __m256 operator()(__m256 a, __m256 b) const noexcept { return _mm256_max_ps(a, b); }
    __m128 operator()(__m128 a, __m128 b) const noexcept { return _mm_max_ps(a, b); }
};
struct AddInts {
    __m512 operator()(__m512 a, __m512 b) const noexcept {
        return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(a), _mm512_castps_si512(b)));
    }
    __m256 operator()(__m256 a, __m256 b) const noexcept {
        return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a), _mm256_castps_si256(b)));
    }
    __m128 operator()(__m128 a, __m128 b) const noexcept {
        return _mm_castsi128_ps(_mm_add_epi32(_mm_castps_si128(a), _mm_castps_si128(b)));
    }
};

// op over the lanes of each of kRows <= 4 vectors, at once: lane r of the result is row r's, those above are
// unspecified. The order of operations is the same for every number of rows.
template <int kRows, typename Op>
inline __m128 reduce_rows(const __m512 (&x)[kRows], Op&& op) noexcept {
    const __m512 a = x[0], b = x[kRows > 1 ? 1 : 0], c = x[kRows > 2 ? 2 : 0], d = x[kRows > 3 ? 3 : 0];
    const __m512 ab = op(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    const __m512 cd = op(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    const __m512 s = op(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xee));
    const __m256 half = op(_mm512_castps512_ps256(s), _mm512_extractf32x8_ps(s, 1));
    return op(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}

// Lane i of the result is v[i]'s lanes joined by op, which is associative and commutative up to rounding. In
// each 128-bit part, transposing steps bring the four parts' results of v[4j + k] to lane k of d[j]; the
// parts are then brought together.
template <typename Op>
inline __m512 reduce_each(const __m512 (&v)[16], Op&& op) noexcept {
    __m512 d[4];
    unroll<4>([&](auto part) {
        constexpr int j = decltype(part)::value;
        const __m512 a = v[4 * j], b = v[4 * j + 1], c = v[4 * j + 2], e = v[4 * j + 3];
        const __m512 ab = op(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
        const __m512 ce = op(_mm512_unpacklo_ps(c, e), _mm512_unpackhi_ps(c, e));
        d[j] = op(_mm512_shuffle_ps(ab, ce, 0x44), _mm512_shuffle_ps(ab, ce, 0xee));
    });
    const __m512 x = op(_mm512_shuffle_f32x4(d[0], d[1], 0x88), _mm512_shuffle_f32x4(d[0], d[1], 0xdd));
    const __m512 y = op(_mm512_shuffle_f32x4(d[2], d[3], 0x88), _mm512_shuffle_f32x4(d[2], d[3], 0xdd));
    return op(_mm512_shuffle_f32x4(x, y, 0x88), _mm512_shuffle_f32x4(x, y, 0xdd));
}

inline __m512 sum_each(const __m512 (&v)[16]) noexcept { return reduce_each(v, Add{}); }

inline __m512 max_each(const __m512 (&v)[16]) noexcept { return reduce_each(v, Max{}); }

// Columns of the 16 x 16 matrix with these rows.
inline void transpose(__m512 (&r)[16]) noexcept {
    __m512 x[16], y[16];
    // Within 128-bit parts: 4 x 4 transposes. y[4j + k], part p: column 4p + k of rows 4j .. 4j + 3.
    unroll<4>([&](auto part) {
        constexpr int j = 4 * decltype(part)::value;
        x[j] = _mm512_unpacklo_ps(r[j], r[j + 1]), x[j + 1] = _mm512_unpackhi_ps(r[j], r[j + 1]);
        x[j + 2] = _mm512_unpacklo_ps(r[j + 2], r[j + 3]), x[j + 3] = _mm512_unpackhi_ps(r[j + 2], r[j + 3]);
        y[j] = _mm512_shuffle_ps(x[j], x[j + 2], 0x44), y[j + 1] = _mm512_shuffle_ps(x[j], x[j + 2], 0xee);
        y[j + 2] = _mm512_shuffle_ps(x[j + 1], x[j + 3], 0x44);
        y[j + 3] = _mm512_shuffle_ps(x[j + 1], x[j + 3], 0xee);
    });
    // Of each k, the 4 x 4 parts of y[k], y[4 + k], y[8 + k], y[12 + k] are transposed: r[4p + k] = column.
    unroll<4>([&](auto column) {
        constexpr int k = decltype(column)::value;
        const __m512 a = _mm512_shuffle_f32x4(y[k], y[4 + k], 0x88),
                     b = _mm512_shuffle_f32x4(y[8 + k], y[12 + k], 0x88),
                     c = _mm512_shuffle_f32x4(y[k], y[4 + k], 0xdd),
                     d = _mm512_shuffle_f32x4(y[8 + k], y[12 + k], 0xdd);
        r[k] = _mm512_shuffle_f32x4(a, b, 0x88), r[8 + k] = _mm512_shuffle_f32x4(a, b, 0xdd);
        r[4 + k] = _mm512_shuffle_f32x4(c, d, 0x88), r[12 + k] = _mm512_shuffle_f32x4(c, d, 0xdd);
    });
}

}  // namespace
}  // namespace mixed_kv::kernels::avx512
