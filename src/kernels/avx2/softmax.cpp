// Logits and the online softmax over a page of 64 scores.

#include <limits>

#include "kernels/avx2/avx2.h"
#include "kernels/avx2/simd.h"

namespace mixed_kv::kernels::avx2 {
namespace {

constexpr float kMasked = -std::numeric_limits<float>::infinity();

// e^x for x <= 40, relative error below 2e-7; 0 below -87.33 (where results would be subnormal), NaN for NaN.
// x = n ln 2 + r with |r| <= ln 2 / 2; the Taylor polynomial of degree 7 is exact to 6e-9 there.
inline __m256 exp_ps(__m256 x) noexcept {
    const __m256 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504089f)),
                                     _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m256 r =
        _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693359375f), x);  // ln 2 in two parts, the first exact in n * it
    r = _mm256_fnmadd_ps(n, _mm256_set1_ps(-2.12194440e-4f), r);
    __m256 p = _mm256_set1_ps(1.0f / 5040);
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 720));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 120));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 24));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 6));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0.5f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f));
    const __m256i exponent =
        _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
    const __m256 result = _mm256_mul_ps(p, _mm256_castsi256_ps(exponent));
    const __m256 underflow = _mm256_cmp_ps(x, _mm256_set1_ps(-87.33f), _CMP_LT_OQ);
    return _mm256_andnot_ps(underflow, result);
}

// tanh, relative error below 3e-7: an odd polynomial (Cephes tanhf) below 0.625, else 1 - 2 / (e^2|x| + 1).
inline __m256 tanh_ps(__m256 x) noexcept {
    const __m256 sign = _mm256_and_ps(x, _mm256_set1_ps(-0.0f));
    const __m256 magnitude =
        _mm256_min_ps(_mm256_set1_ps(10.0f), abs_ps(x));  // tanh(10) rounds to 1; keeps NaN
    const __m256 x2 = _mm256_mul_ps(magnitude, magnitude);
    __m256 p = _mm256_set1_ps(-5.70498872745e-3f);
    p = _mm256_fmadd_ps(p, x2, _mm256_set1_ps(2.06390887954e-2f));
    p = _mm256_fmadd_ps(p, x2, _mm256_set1_ps(-5.37397155531e-2f));
    p = _mm256_fmadd_ps(p, x2, _mm256_set1_ps(1.33314422036e-1f));
    p = _mm256_fmadd_ps(p, x2, _mm256_set1_ps(-3.33332819422e-1f));
    const __m256 small = _mm256_fmadd_ps(_mm256_mul_ps(p, x2), magnitude, magnitude);
    const __m256 e = exp_ps(_mm256_add_ps(magnitude, magnitude));
    const __m256 one = _mm256_set1_ps(1.0f);
    const __m256 large = _mm256_sub_ps(one, _mm256_div_ps(_mm256_set1_ps(2.0f), _mm256_add_ps(e, one)));
    const __m256 is_small = _mm256_cmp_ps(magnitude, _mm256_set1_ps(0.625f), _CMP_LT_OQ);
    return _mm256_or_ps(sign, _mm256_blendv_ps(large, small, is_small));
}

}  // namespace

void logits(const LogitArgs& a) noexcept {
    const __m256 masked = _mm256_set1_ps(kMasked);
    const __m256 cap = _mm256_set1_ps(a.softcap), slope = _mm256_set1_ps(a.slope);
    for (int t = 0; t < kPage; t += 8) {
        const int n = a.n_tokens - t;
        if (n <= 0) {
            _mm256_storeu_ps(a.scores + t, masked);
            continue;
        }
        __m256 x = _mm256_loadu_ps(a.scores + t);
        if (a.softcap != 0.0f) {
            x = _mm256_mul_ps(cap, tanh_ps(x));
        }
        if (a.mask != nullptr) {
            const __m256 mask = n >= 8 ? load_halves(a.mask + t) : load_halves(a.mask + t, n);
            const __m256 hidden = _mm256_cmp_ps(mask, masked, _CMP_EQ_OQ);
            x = _mm256_add_ps(x, _mm256_mul_ps(slope, mask));
            x = _mm256_blendv_ps(x, masked, hidden);  // whatever the score was, NaN included
        }
        if (n < 8) {
            x = _mm256_blendv_ps(masked, x, _mm256_castsi256_ps(lane_mask(n)));
        }
        _mm256_storeu_ps(a.scores + t, x);
    }
}

void softmax(const SoftmaxArgs& a) noexcept {
    const __m256 masked = _mm256_set1_ps(kMasked);
    for (int r = 0; r < a.n_rows; ++r) {
        float* s = a.scores + r * kPage;
        __m256 x[8];
        __m256 largest = masked, seen = _mm256_setzero_ps();
        for (int i = 0; i < 8; ++i) {
            x[i] = _mm256_loadu_ps(s + i * 8);
            largest = _mm256_max_ps(x[i], largest);  // skips NaN
            seen = _mm256_or_ps(seen, _mm256_cmp_ps(x[i], masked, _CMP_NEQ_UQ));
        }
        if (_mm256_movemask_ps(seen) == 0) {
            for (int i = 0; i < 8; ++i) {
                _mm256_storeu_ps(s + i * 8, _mm256_setzero_ps());
            }
            a.rescale[r] = 1.0f;
            continue;
        }
        const float page_max = horizontal_max(largest);
        const float m = page_max > a.m[r] ? page_max : a.m[r];
        const __m256 shift = _mm256_set1_ps(m);
        __m256 sum0 = _mm256_setzero_ps(), sum1 = _mm256_setzero_ps();
        for (int i = 0; i < 8; i += 2) {
            const __m256 p0 = exp_ps(_mm256_sub_ps(x[i], shift));
            const __m256 p1 = exp_ps(_mm256_sub_ps(x[i + 1], shift));
            _mm256_storeu_ps(s + i * 8, p0);
            _mm256_storeu_ps(s + i * 8 + 8, p1);
            sum0 = _mm256_add_ps(sum0, p0);
            sum1 = _mm256_add_ps(sum1, p1);
        }
        const float rescale = _mm256_cvtss_f32(exp_ps(_mm256_set1_ps(a.m[r] - m)));
        a.rescale[r] = rescale;
        a.l[r] = a.l[r] * rescale + horizontal_sum(_mm256_add_ps(sum0, sum1));
        a.m[r] = m;
    }
}

}  // namespace mixed_kv::kernels::avx2
