// Logits and the online softmax over a page of 64 scores: four registers.

#include <limits>

#include "kernels/avx512/avx512.h"
#include "kernels/avx512/lanes.h"

namespace mixed_kv::kernels::avx512 {
namespace {

constexpr float kMasked = -std::numeric_limits<float>::infinity();

// e^x for x <= 40, relative error below 2e-7; 0 below -87.33 (where results would be subnormal), NaN for NaN.
// x = n ln 2 + r with |r| <= ln 2 / 2. The polynomial is that of the AVX2 kernels.
inline __m512 exp_ps(__m512 x) noexcept {
    // Added to a number below 2^22, it rounds the number to an integer.
    const __m512 to_integer = _mm512_set1_ps(0x1.8p23f);
    const __m512 z = _mm512_fmadd_ps(x, _mm512_set1_ps(1.44269504089f), to_integer);
    const __m512 n = _mm512_sub_ps(z, to_integer);
    __m512 r =
        _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);  // ln 2 in two parts, the first exact in n * it
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
    __m512 p = _mm512_set1_ps(1.3926180e-3f);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(8.3631761e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(4.1666556e-2f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.6666576e-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.5f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
    const __mmask16 normal = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-87.33f), _CMP_NLT_UQ);
    return _mm512_maskz_scalef_ps(normal, p, n);
}

// tanh, relative error below 3e-7: an odd polynomial (Cephes tanhf) below 0.625, else 1 - 2 / (e^2|x| + 1).
inline __m512 tanh_ps(__m512 x) noexcept {
    const __m512 sign = _mm512_and_ps(x, _mm512_set1_ps(-0.0f));
    const __m512 magnitude =
        _mm512_min_ps(_mm512_set1_ps(10.0f), _mm512_abs_ps(x));  // tanh(10) rounds to 1; keeps NaN
    const __m512 x2 = _mm512_mul_ps(magnitude, magnitude);
    __m512 p = _mm512_set1_ps(-5.70498872745e-3f);
    p = _mm512_fmadd_ps(p, x2, _mm512_set1_ps(2.06390887954e-2f));
    p = _mm512_fmadd_ps(p, x2, _mm512_set1_ps(-5.37397155531e-2f));
    p = _mm512_fmadd_ps(p, x2, _mm512_set1_ps(1.33314422036e-1f));
    p = _mm512_fmadd_ps(p, x2, _mm512_set1_ps(-3.33332819422e-1f));
    const __m512 small = _mm512_fmadd_ps(_mm512_mul_ps(p, x2), magnitude, magnitude);
    const __m512 e = exp_ps(_mm512_add_ps(magnitude, magnitude));
    const __m512 one = _mm512_set1_ps(1.0f);
    const __m512 large = _mm512_sub_ps(one, _mm512_div_ps(_mm512_set1_ps(2.0f), _mm512_add_ps(e, one)));
    const __mmask16 is_small = _mm512_cmp_ps_mask(magnitude, _mm512_set1_ps(0.625f), _CMP_LT_OQ);
    return _mm512_or_ps(sign, _mm512_mask_mov_ps(large, is_small, small));
}

// The largest of a row's scores, in whatever lane; skips NaN. s: the row in the first page.
inline __m512 row_max(const SoftmaxArgs& a, const float* s) noexcept {
    __m512 even = _mm512_set1_ps(kMasked), odd = even;
    for (int page = 0; page < a.n_pages; ++page, s += a.page_stride) {
        even = _mm512_max_ps(_mm512_loadu_ps(s), even);
        odd = _mm512_max_ps(_mm512_loadu_ps(s + 16), odd);
        even = _mm512_max_ps(_mm512_loadu_ps(s + 32), even);
        odd = _mm512_max_ps(_mm512_loadu_ps(s + 48), odd);
    }
    return _mm512_max_ps(even, odd);
}

// scores -> exp(scores - shift); returns their sums.
inline __m512 row_exp(const SoftmaxArgs& a, float* s, float shift) noexcept {
    const __m512 top = _mm512_set1_ps(shift);
    __m512 sum = _mm512_setzero_ps();
    for (int page = 0; page < a.n_pages; ++page, s += a.page_stride) {
        __m512 p[4];
        unroll<4>([&](auto i) {
            p[i.value] = exp_ps(_mm512_sub_ps(_mm512_loadu_ps(s + i.value * 16), top));
            _mm512_storeu_ps(s + i.value * 16, p[i.value]);
        });
        sum = _mm512_add_ps(sum, _mm512_add_ps(_mm512_add_ps(p[0], p[1]), _mm512_add_ps(p[2], p[3])));
    }
    return sum;
}

// A row whose largest score is -inf: all are masked, or some are NaN.
bool all_masked(const SoftmaxArgs& a, const float* s) noexcept {
    unsigned seen = 0;
    for (int page = 0; page < a.n_pages; ++page, s += a.page_stride) {
        for (int i = 0; i < kPage; i += 16) {
            seen |= _mm512_cmp_ps_mask(_mm512_loadu_ps(s + i), _mm512_set1_ps(kMasked), _CMP_NEQ_UQ);
        }
    }
    return seen == 0;
}

// One step for kRows <= 4 rows from r on: what is done once per row is done for all of them in one vector,
// and the exponentials of all rows follow each other, so that the CPU overlaps them.
template <int kRows>
inline void softmax_rows(const SoftmaxArgs& a, int r) noexcept {
    float* scores = a.scores + std::ptrdiff_t(r) * kPage;
    __m512 of_row[kRows];
    unroll<kRows>([&](auto i) { of_row[i.value] = row_max(a, scores + i.value * kPage); });
    const __m128 masked = _mm_set1_ps(kMasked);
    const __m128 page_max = reduce_rows<kRows>(of_row, Max{});
    const __m128i lanes = _mm256_castsi256_si128(avx2::lane_mask(kRows));
    const __m128 m_before = _mm_maskload_ps(a.m + r, lanes);

    // A row that sees nothing: m stays, p = exp(-inf - 0), rescale = 1.
    __m128 unseen = _mm_setzero_ps();
    if (_mm_movemask_ps(_mm_cmpeq_ps(page_max, masked)) != 0) {
        alignas(16) std::int32_t row_unseen[4] = {};
        for (int i = 0; i < kRows; ++i) row_unseen[i] = all_masked(a, scores + i * kPage) ? -1 : 0;
        unseen = _mm_castsi128_ps(_mm_load_si128(reinterpret_cast<const __m128i*>(row_unseen)));
    }
    const __m128 m = _mm_max_ps(m_before, page_max);
    const __m512 change = _mm512_broadcast_f32x4(_mm_sub_ps(m_before, m));
    const __m128 rescale = _mm_blendv_ps(_mm512_castps512_ps128(exp_ps(change)), _mm_set1_ps(1.0f), unseen);
    alignas(16) float shift[4];
    _mm_store_ps(shift, _mm_andnot_ps(unseen, m));

    unroll<kRows>([&](auto i) { of_row[i.value] = row_exp(a, scores + i.value * kPage, shift[i.value]); });
    const __m128 l =
        _mm_fmadd_ps(_mm_maskload_ps(a.l + r, lanes), rescale, reduce_rows<kRows>(of_row, Add{}));
    _mm_maskstore_ps(a.m + r, lanes, m);
    _mm_maskstore_ps(a.l + r, lanes, l);
    _mm_maskstore_ps(a.rescale + r, lanes, rescale);
}

// Rows r0 .. r0 + 15, one per lane where there is one number per row. False, with nothing written, where a
// row sees nothing of the page.
bool softmax_16(const SoftmaxArgs& a, int r0) noexcept {
    float* s = a.scores + std::ptrdiff_t(r0) * kPage;
    __m512 of_row[16];
    for (int r = 0; r < 16; ++r) of_row[r] = row_max(a, s + r * kPage);
    const __m512 page_max = max_each(of_row), before = _mm512_loadu_ps(a.m + r0);
    if (_mm512_cmp_ps_mask(page_max, _mm512_set1_ps(kMasked), _CMP_EQ_OQ) != 0) return false;
    const __m512 m = _mm512_max_ps(page_max, before);
    const __m512 rescale = exp_ps(_mm512_sub_ps(before, m));
    _mm512_storeu_ps(a.m + r0, m);
    _mm512_storeu_ps(a.rescale + r0, rescale);
    for (int r = 0; r < 16; ++r) of_row[r] = row_exp(a, s + r * kPage, a.m[r0 + r]);
    const __m512 l = _mm512_mul_ps(_mm512_loadu_ps(a.l + r0), rescale);
    _mm512_storeu_ps(a.l + r0, _mm512_add_ps(l, sum_each(of_row)));
    return true;
}

}  // namespace

void logits(const LogitArgs& a) noexcept {
    const __m512 masked = _mm512_set1_ps(kMasked);
    const __m512 cap = _mm512_set1_ps(a.softcap), slope = _mm512_set1_ps(a.slope);
    for (int t = 0; t < kPage; t += 16) {
        const int n = a.n_tokens - t;
        if (n <= 0) {
            _mm512_storeu_ps(a.scores + t, masked);
            continue;
        }
        const __mmask16 lanes = lane_mask(n < 16 ? n : 16);
        __m512 x = _mm512_loadu_ps(a.scores + t);
        if (a.softcap != 0.0f) {
            x = _mm512_mul_ps(cap, tanh_ps(x));
        }
        if (a.mask != nullptr) {
            const __m512 mask = load_halves(a.mask + t, lanes);
            const __mmask16 hidden = _mm512_cmp_ps_mask(mask, masked, _CMP_EQ_OQ);
            x = _mm512_add_ps(x, _mm512_mul_ps(slope, mask));
            x = _mm512_mask_mov_ps(x, hidden, masked);  // whatever the score was, NaN included
        }
        _mm512_storeu_ps(a.scores + t, _mm512_mask_mov_ps(masked, lanes, x));
    }
}

void softmax(const SoftmaxArgs& a) noexcept {
    int r = 0;
    for (; r + 16 <= a.n_rows; r += 16) {
        if (softmax_16(a, r)) continue;
        for (int i = 0; i < 16; i += 4) softmax_rows<4>(a, r + i);
    }
    for_row_tiles(a.n_rows - r, [&](int i, auto rows) { softmax_rows<decltype(rows)::value>(a, r + i); });
}

}  // namespace mixed_kv::kernels::avx512
