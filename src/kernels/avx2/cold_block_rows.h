#pragma once

#include "kernels/avx2/cold_blocks.h"
#include "kernels/avx2/fold.h"

// qk and pv over unpacked cold pages, with the integer scheme of src/kernels/scalar/cold.cpp. A file that
// includes this compiles one of them, once for all formats.

namespace mixed_kv::kernels::avx2 {
namespace {

constexpr int kLanes = 8;  // one row each, the last two unused

// A block of query rows, folded: row r is step[r] * integers plus what the floats beside them say.
struct FoldedRows {
    float* scaled;      // [kRowsAtOnce][summed]: q * scale or p * scale
    IntPair* integers;  // [kRowsAtOnce][n_pairs], in the order of pair_row()
    alignas(32) float step[kLanes], constant[kLanes];
    alignas(32) float weight[kLanes];  // of the channels' means, values only
};

// reduce() for up to six rows.
template <int kRows, typename Op>
inline __m256 reduce_rows(const __m256 (&x)[kRows], Op&& op) noexcept {
    if constexpr (kRows <= 4) {
        return _mm256_set_m128(_mm_setzero_ps(), reduce<kRows>(x, op));
    } else {
        const __m256 low[4] = {x[0], x[1], x[2], x[3]};
        __m256 high[kRows - 4];
        unroll<kRows - 4>([&](auto r) { high[r.value] = x[4 + r.value]; });
        return _mm256_set_m128(reduce<kRows - 4>(high, op), reduce<4>(low, op));
    }
}

// Rounds the scaled rows to 16 bits; lane r of largest is row r's largest magnitude.
template <int kRows>
inline void round_rows(const UnpackedPage& page, __m256 largest, int limit, FoldedRows& rows) noexcept {
    const __m256 bound = _mm256_set1_ps(static_cast<float>(limit));
    const __m256 nonzero = _mm256_cmp_ps(largest, _mm256_set1_ps(1e-30f), _CMP_GT_OQ);
    alignas(32) float inv[kLanes];
    _mm256_store_ps(inv, _mm256_and_ps(_mm256_div_ps(bound, largest), nonzero));
    _mm256_store_ps(rows.step, _mm256_and_ps(_mm256_div_ps(largest, bound), nonzero));
    const int length = 2 * page.n_pairs;
    __m256 factor[kRows];
    unroll<kRows>([&](auto r) { factor[r.value] = _mm256_broadcast_ss(inv + r.value); });
    for (int c = 0; c < length; c += 16) {
        unroll<kRows>([&](auto r) {
            const float* x = rows.scaled + std::ptrdiff_t(r.value) * length + c;
            const __m256i a = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x), factor[r.value]));
            const __m256i b = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + 8), factor[r.value]));
            IntPair* out = rows.integers + (std::ptrdiff_t(r.value) * length + c) / 2;
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), _mm256_packs_epi32(a, b));
        });
    }
}

// Folds the page's scales, and its offsets if it holds keys, into kRows rows of x.
template <int kRows, bool kIsKey>
inline void fold(const UnpackedPage& page, const float* x, std::ptrdiff_t stride, int limit,
                 FoldedRows& rows) noexcept {
    const int length = 2 * page.n_pairs;
    __m256 largest[kRows], constant[kRows], weight[kRows];
    unroll<kRows>(
        [&](auto r) { largest[r.value] = constant[r.value] = weight[r.value] = _mm256_setzero_ps(); });
    for (int c = 0; c < length; c += 8) {
        const __m256 scale = _mm256_loadu_ps(page.scale + c);
        const __m256 offset = kIsKey ? _mm256_loadu_ps(page.offset + c) : scale;
        unroll<kRows>([&](auto r) {
            const __m256 value = _mm256_loadu_ps(x + r.value * stride + c);
            const __m256 product = _mm256_mul_ps(value, scale);
            _mm256_storeu_ps(rows.scaled + std::ptrdiff_t(r.value) * length + c, product);
            if constexpr (kIsKey) {
                largest[r.value] = _mm256_max_ps(abs_ps(product), largest[r.value]);
                constant[r.value] = _mm256_fmadd_ps(value, offset, constant[r.value]);
            } else {  // neither weights nor their scales are negative
                largest[r.value] = _mm256_max_ps(product, largest[r.value]);
                constant[r.value] = _mm256_add_ps(product, constant[r.value]);
                weight[r.value] = _mm256_add_ps(value, weight[r.value]);
            }
        });
    }
    const __m256 row_constant = reduce_rows<kRows>(constant, Add{});
    if constexpr (kIsKey) {
        _mm256_store_ps(rows.constant, row_constant);
    } else {
        _mm256_store_ps(rows.constant,
                        _mm256_mul_ps(row_constant, _mm256_set1_ps(formats::kCentreAboveMiddle)));
        _mm256_store_ps(rows.weight, reduce_rows<kRows>(weight, Add{}));
    }
    round_rows<kRows>(page, reduce_rows<kRows>(largest, Max{}), limit, rows);
}

// Replaces the rows by what rounding left out of them. Product and difference are rounded one after the other
// as in the scalar kernels.
template <int kRows>
inline void fold_rest(const UnpackedPage& page, int limit, FoldedRows& rows) noexcept {
    const int length = 2 * page.n_pairs;
    __m256 largest[kRows];
    unroll<kRows>([&](auto row) {
        constexpr int r = decltype(row)::value;
        largest[r] = _mm256_setzero_ps();
        const __m256 unit = _mm256_set1_ps(rows.step[r]);
        for (int c = 0; c < length; c += 16) {
            float* x = rows.scaled + std::ptrdiff_t(r) * length + c;
            const IntPair* from = rows.integers + (std::ptrdiff_t(r) * length + c) / 2;
            const __m256i q = _mm256_permute4x64_epi64(load_i(from), 0xd8);
            const __m256 a = _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(_mm256_castsi256_si128(q)));
            const __m256 b = _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(_mm256_extracti128_si256(q, 1)));
            const __m256 rest_a = _mm256_sub_ps(_mm256_loadu_ps(x), _mm256_mul_ps(a, unit));
            const __m256 rest_b = _mm256_sub_ps(_mm256_loadu_ps(x + 8), _mm256_mul_ps(b, unit));
            _mm256_storeu_ps(x, rest_a);
            _mm256_storeu_ps(x + 8, rest_b);
            largest[r] = _mm256_max_ps(_mm256_max_ps(abs_ps(rest_a), abs_ps(rest_b)), largest[r]);
        }
    });
    _mm256_store_ps(rows.constant, _mm256_setzero_ps());
    _mm256_store_ps(rows.weight, _mm256_setzero_ps());
    round_rows<kRows>(page, reduce_rows<kRows>(largest, Max{}), limit, rows);
}

// The second pass over the rows of the mask: multiply(Int<n>, first row, their rests). Seldom more than a row
// of a block needs it, or all do.
template <int kRows, typename Multiply>
inline void for_rests(const UnpackedPage& page, int limit, unsigned wanted, FoldedRows& rows,
                      Multiply&& multiply) noexcept {
    if (wanted == (1u << kRows) - 1u) {
        fold_rest<kRows>(page, limit, rows);
        multiply(Int<kRows>{}, 0, rows);
        return;
    }
    for (int r = 0; r < kRows; ++r) {
        if ((wanted >> r & 1u) == 0) continue;
        FoldedRows one;
        one.scaled = rows.scaled + std::ptrdiff_t(r) * 2 * page.n_pairs;
        one.integers = rows.integers + std::ptrdiff_t(r) * page.n_pairs;
        one.step[0] = rows.step[r];
        fold_rest<1>(page, limit, one);
        multiply(Int<1>{}, r, one);
    }
}

inline FoldedRows place_rows(const UnpackedPage& page) noexcept {
    FoldedRows rows;
    rows.scaled = reinterpret_cast<float*>(page.rows);
    rows.integers = reinterpret_cast<IntPair*>(rows.scaled + std::ptrdiff_t(kRowsAtOnce) * 2 * page.n_pairs);
    return rows;
}

// Scores of 16 tokens.
struct WriteScores {
    float* out;
    const float *step, *constant;
    bool add;  // on top of what is there

    template <typename Row>
    void operator()(Row i, __m256i s0, __m256i s1) const noexcept {
        float* at = out + i.value * kPage;
        const __m256 unit = _mm256_broadcast_ss(step + i.value);
        const __m256 offset = _mm256_broadcast_ss(constant + i.value);
        __m256 x0 = _mm256_fmadd_ps(_mm256_cvtepi32_ps(s0), unit, offset);
        __m256 x1 = _mm256_fmadd_ps(_mm256_cvtepi32_ps(s1), unit, offset);
        if (add) {
            x0 = _mm256_add_ps(_mm256_loadu_ps(at), x0);
            x1 = _mm256_add_ps(_mm256_loadu_ps(at + 8), x1);
        }
        _mm256_storeu_ps(at, x0);
        _mm256_storeu_ps(at + 8, x1);
    }
};

// Weighted values of 16 channels.
struct AddValues {
    float* out;
    std::ptrdiff_t stride;
    const float *step, *constant, *weight;
    __m256 mean0, mean1;

    template <typename Row>
    void operator()(Row i, __m256i s0, __m256i s1) const noexcept {
        float* at = out + i.value * stride;
        const __m256 unit = _mm256_broadcast_ss(step + i.value), w = _mm256_broadcast_ss(weight + i.value);
        const __m256 offset = _mm256_broadcast_ss(constant + i.value);
        const __m256 x0 = _mm256_fmadd_ps(_mm256_cvtepi32_ps(s0), unit, _mm256_fmadd_ps(w, mean0, offset));
        const __m256 x1 = _mm256_fmadd_ps(_mm256_cvtepi32_ps(s1), unit, _mm256_fmadd_ps(w, mean1, offset));
        const __m256 o0 = _mm256_loadu_ps(at), o1 = _mm256_loadu_ps(at + 8);
        _mm256_storeu_ps(at, _mm256_add_ps(o0, x0));
        _mm256_storeu_ps(at + 8, _mm256_add_ps(o1, x1));
    }
};

// Calls finish_at(first column) for the tile of every panel.
template <int kRows, typename FinishAt>
inline void multiply(const UnpackedPage& page, const FoldedRows& rows, FinishAt&& finish_at) noexcept {
    const IntPair* panel = page.codes;
    for (int column = 0; column < page.n_columns; column += 16, panel += std::ptrdiff_t(page.n_pairs) * 16) {
        matrix_tile<kRows>(rows.integers, page.n_pairs, panel, 16, page.n_pairs, finish_at(column));
    }
}

// The block's scores, rows from r0 on.
template <int kRows>
inline void write_scores(const QkArgs& a, const UnpackedPage& page, const FoldedRows& rows, int r0,
                         bool add) noexcept {
    float* out = a.scores + std::ptrdiff_t(r0) * kPage;
    multiply<kRows>(page, rows, [&](int column) {
        return WriteScores{out + column, rows.step, rows.constant, add};
    });
}

// Adds the block's weighted values to o.
template <int kRows>
inline void add_values(const PvArgs& a, const UnpackedPage& page, const FoldedRows& rows, int r0) noexcept {
    float* out = a.o + r0 * a.o_stride;
    multiply<kRows>(page, rows, [&](int column) {
        const float* mean = page.offset + column;
        return AddValues{out + column,
                         a.o_stride,
                         rows.step,
                         rows.constant,
                         rows.weight,
                         _mm256_loadu_ps(mean),
                         _mm256_loadu_ps(mean + 8)};
    });
}

// limit and noise: formats::q16_limit() and score_noise() of the page.
[[maybe_unused]] __attribute__((noinline)) void qk_blocks(const QkArgs& a, const UnpackedPage& page,
                                                          int limit, float noise) noexcept {
    FoldedRows rows = place_rows(page);
    for_row_blocks(a.n_rows, [&](int r, auto n) {
        constexpr int kRows = decltype(n)::value;
        fold<kRows, true>(page, a.q + r * a.q_stride, a.q_stride, limit, rows);
        const __m256 error = _mm256_mul_ps(_mm256_load_ps(rows.step), _mm256_set1_ps(noise));
        const unsigned rest = static_cast<unsigned>(_mm256_movemask_ps(_mm256_cmp_ps(
                                  error, _mm256_set1_ps(formats::kScoreNoiseAllowed), _CMP_GT_OQ))) &
                              ((1u << kRows) - 1u);
        write_scores<kRows>(a, page, rows, r, a.accumulate);
        for_rests<kRows>(page, limit, rest, rows, [&](auto n_rest, int i, const FoldedRows& rests) {
            write_scores<decltype(n_rest)::value>(a, page, rests, r + i, true);
        });
    });
}

[[maybe_unused]] __attribute__((noinline)) void pv_blocks(const PvArgs& a, const UnpackedPage& page,
                                                          int limit) noexcept {
    FoldedRows rows = place_rows(page);
    for_row_blocks(a.n_rows, [&](int r, auto n) {
        constexpr int kRows = decltype(n)::value;
        fold<kRows, false>(page, a.p + std::ptrdiff_t(r) * kPage, kPage, limit, rows);
        const unsigned rest = heavy_rows<kRows>(a, rows.weight, r);
        add_values<kRows>(a, page, rows, r);
        for_rests<kRows>(page, limit, rest, rows, [&](auto n_rest, int i, const FoldedRows& rests) {
            add_values<decltype(n_rest)::value>(a, page, rests, r + i);
        });
    });
}

}  // namespace
}  // namespace mixed_kv::kernels::avx2
