// Logits and the online softmax over a page of 64 scores: four registers.

#include <limits>

#include "kernels/avx512/avx512.h"
#include "kernels/avx512/lanes.h"

namespace mixed_kv::kernels::avx512 {
namespace {

constexpr float kMasked = -std::numeric_limits<float>::infinity();

// e^x for x <= 40, relative error below 2e-7; 0 below -87.33 (where results would be subnormal), NaN for NaN.
// x = n ln 2 + r with |r| <= ln 2 / 2; the Taylor polynomial of degree 7 is exact to 6e-9 there.
inline __m512 exp_ps(__m512 x) noexcept {
    const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504089f)),
                                          _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m512 r =
        _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);  // ln 2 in two parts, the first exact in n * it
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
    __m512 p = _mm512_set1_ps(1.0f / 5040);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 720));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 120));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 24));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 6));
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

void softmax_row(const SoftmaxArgs& a, int r) noexcept {
    const __m512 masked = _mm512_set1_ps(kMasked);
    float* s = a.scores + r * kPage;
    __m512 x[4];
    __m512 largest = masked;
    unsigned seen = 0;
    for (int i = 0; i < 4; ++i) {
        x[i] = _mm512_loadu_ps(s + i * 16);
        largest = _mm512_max_ps(x[i], largest);  // skips NaN
        seen |= _mm512_cmp_ps_mask(x[i], masked, _CMP_NEQ_UQ);
    }
    if (seen == 0) {
        for (int i = 0; i < 4; ++i) {
            _mm512_storeu_ps(s + i * 16, _mm512_setzero_ps());
        }
        a.rescale[r] = 1.0f;
        return;
    }
    const float page_max = horizontal_max(largest);
    const float m = page_max > a.m[r] ? page_max : a.m[r];
    const __m512 shift = _mm512_set1_ps(m);
    __m512 sum = _mm512_setzero_ps();
    for (int i = 0; i < 4; ++i) {
        const __m512 p = exp_ps(_mm512_sub_ps(x[i], shift));
        _mm512_storeu_ps(s + i * 16, p);
        sum = _mm512_add_ps(sum, p);
    }
    const float rescale = _mm512_cvtss_f32(exp_ps(_mm512_set1_ps(a.m[r] - m)));
    a.rescale[r] = rescale;
    a.l[r] = a.l[r] * rescale + horizontal_sum(sum);
    a.m[r] = m;
}

// Rows r0 .. r0 + 15, one per lane where there is one number per row. False, with nothing written, where a
// row sees nothing of the page.
bool softmax_16(const SoftmaxArgs& a, int r0) noexcept {
    const __m512 masked = _mm512_set1_ps(kMasked);
    float* s = a.scores + std::ptrdiff_t(r0) * kPage;
    __m512 of_row[16];
    for (int r = 0; r < 16; ++r) {
        __m512 largest = masked;
        for (int i = 0; i < 4; ++i) {
            largest = _mm512_max_ps(_mm512_loadu_ps(s + r * kPage + i * 16), largest);  // skips NaN
        }
        of_row[r] = largest;
    }
    const __m512 page_max = max_each(of_row), before = _mm512_loadu_ps(a.m + r0);
    if (_mm512_cmp_ps_mask(page_max, masked, _CMP_EQ_OQ) != 0) return false;
    const __m512 m = _mm512_max_ps(page_max, before);
    const __m512 rescale = exp_ps(_mm512_sub_ps(before, m));
    _mm512_storeu_ps(a.m + r0, m);
    _mm512_storeu_ps(a.rescale + r0, rescale);
    for (int r = 0; r < 16; ++r) {
        const __m512 shift = _mm512_set1_ps(a.m[r0 + r]);
        __m512 sum = _mm512_setzero_ps();
        for (int i = 0; i < 4; ++i) {
            float* x = s + r * kPage + i * 16;
            const __m512 p = exp_ps(_mm512_sub_ps(_mm512_loadu_ps(x), shift));
            _mm512_storeu_ps(x, p);
            sum = _mm512_add_ps(sum, p);
        }
        of_row[r] = sum;
    }
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
        for (int i = 0; i < 16; ++i) softmax_row(a, r + i);
    }
    for (; r < a.n_rows; ++r) softmax_row(a, r);
}

}  // namespace mixed_kv::kernels::avx512
