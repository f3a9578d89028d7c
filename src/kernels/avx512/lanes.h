#pragma once

#include "kernels/avx512/simd.h"

// Sixteen vectors against each other: their sums or maxima, and the transpose of 16 x 16 lanes.
namespace mixed_kv::kernels::avx512 {
namespace {

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

inline __m512 sum_each(const __m512 (&v)[16]) noexcept {
    return reduce_each(v, [](__m512 a, __m512 b) { return _mm512_add_ps(a, b); });
}

inline __m512 max_each(const __m512 (&v)[16]) noexcept {
    return reduce_each(v, [](__m512 a, __m512 b) { return _mm512_max_ps(a, b); });
}

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
