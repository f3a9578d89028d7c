// Logits and the online softmax over a page of 64 scores.

#include <limits>

#include "kernels/avx2/avx2.h"
#include "kernels/avx2/registers.h"
#include "kernels/avx2/simd.h"

namespace mixed_kv::kernels::avx2 {
namespace {

constexpr float kMasked = -std::numeric_limits<float>::infinity();

// e^x for x <= 40, relative error below 2e-7; 0 below -87.33 (where results would be subnormal), NaN for NaN.
// x = n ln 2 + r with |r| <= ln 2 / 2. The polynomial of degree 6 keeps 1 + r + r^2 / 2 and takes the other
// coefficients from interpolation at Chebyshev nodes; it is exact to 1.1e-8.
inline __m256 exp_ps(__m256 x) noexcept {
    // Added to a number below 2^22, it leaves the number's integer, plus 127, in the low bits.
    const __m256 to_integer = _mm256_set1_ps(0x1.8p23f + 127.0f);
    const __m256 z = _mm256_fmadd_ps(x, _mm256_set1_ps(1.44269504089f), to_integer);
    const __m256 n = _mm256_sub_ps(z, to_integer);
    __m256 r =
        _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693359375f), x);  // ln 2 in two parts, the first exact in n * it
    r = _mm256_fnmadd_ps(n, _mm256_set1_ps(-2.12194440e-4f), r);
    __m256 p = _mm256_set1_ps(1.3926180e-3f);
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(8.3631761e-3f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(4.1666556e-2f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.6666576e-1f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0.5f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f));
    const __m256i exponent = _mm256_slli_epi32(_mm256_castps_si256(z), 23);
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

// Lane i of the result is the maximum of v[i]'s lanes.
inline __m128 max_each(const __m256 (&v)[4]) noexcept {
    const __m256 a = _mm256_max_ps(_mm256_unpacklo_ps(v[0], v[1]), _mm256_unpackhi_ps(v[0], v[1]));
    const __m256 b = _mm256_max_ps(_mm256_unpacklo_ps(v[2], v[3]), _mm256_unpackhi_ps(v[2], v[3]));
    const __m256 s = _mm256_max_ps(_mm256_shuffle_ps(a, b, 0x44), _mm256_shuffle_ps(a, b, 0xee));
    return _mm_max_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
}

// One step for n_rows <= 4 rows from r on: what is done once per row is done for all of them in one vector.
// The loops stay loops: unrolled, this is faster alone and slower between the other kernels of a page,
// presumably because 5 KiB of code push theirs out of the CPU's store of decoded instructions.
void softmax_rows(const SoftmaxArgs& a, int r, int n_rows) noexcept {
    const __m256 masked = _mm256_set1_ps(kMasked);
    float* const scores = a.scores + std::ptrdiff_t(r) * kPage;
    __m256 largest[4] = {masked, masked, masked, masked};
    alignas(16) std::int32_t row_seen[4] = {};
    for (int row = 0; row < n_rows; ++row) {
        const float* s = scores + std::ptrdiff_t(row) * kPage;
        __m256 top[2] = {masked, masked}, seen[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
        for (int page = 0; page < a.n_pages; ++page, s += a.page_stride) {
            unroll<kPage / 8>([&](auto i) {
                constexpr int j = decltype(i)::value % 2;
                const __m256 x = _mm256_loadu_ps(s + 8 * i.value);
                top[j] = _mm256_max_ps(x, top[j]);  // skips NaN
                seen[j] = _mm256_or_ps(seen[j], _mm256_cmp_ps(x, masked, _CMP_NEQ_UQ));
            });
        }
        largest[row] = _mm256_max_ps(top[0], top[1]);
        row_seen[row] = _mm256_movemask_ps(_mm256_or_ps(seen[0], seen[1])) != 0 ? -1 : 0;
    }

    // A row whose scores are all -inf: m stays, p = exp(-inf - 0), rescale = 1.
    const __m128 seen = _mm_castsi128_ps(_mm_load_si128(reinterpret_cast<const __m128i*>(row_seen)));
    const __m128i rows = _mm256_castsi256_si128(lane_mask(n_rows));
    const __m128 m_before = _mm_maskload_ps(a.m + r, rows);
    const __m128 m = _mm_max_ps(m_before, max_each(largest));
    const __m128 change = _mm_sub_ps(m_before, m);
    const __m128 rescale = _mm_blendv_ps(
        _mm_set1_ps(1.0f), _mm256_castps256_ps128(exp_ps(_mm256_castps128_ps256(change))), seen);
    alignas(16) float shift[4];
    _mm_store_ps(shift, _mm_and_ps(m, seen));

    __m256 sum[4] = {_mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps()};
    for (int row = 0; row < n_rows; ++row) {
        const __m256 top = _mm256_broadcast_ss(shift + row);
        __m256 sum0 = _mm256_setzero_ps(), sum1 = _mm256_setzero_ps();
        for (int page = 0; page < a.n_pages; ++page) {
            float* s = scores + page * a.page_stride + std::ptrdiff_t(row) * kPage;
            float* const end = s + kPage;
            while (s < end) {
                const __m256 p0 = exp_ps(_mm256_sub_ps(_mm256_loadu_ps(s), top));
                const __m256 p1 = exp_ps(_mm256_sub_ps(_mm256_loadu_ps(s + 8), top));
                _mm256_storeu_ps(s, p0);
                _mm256_storeu_ps(s + 8, p1);
                sum0 = _mm256_add_ps(sum0, p0);
                sum1 = _mm256_add_ps(sum1, p1);
                s += 16;
                asm("" : "+r"(s));  // four rounds, as the compiler cannot see: it would unroll them
            }
        }
        sum[row] = _mm256_add_ps(sum0, sum1);
    }
    const __m128 l =
        _mm_fmadd_ps(_mm_maskload_ps(a.l + r, rows), rescale, sum_each(sum[0], sum[1], sum[2], sum[3]));
    _mm_maskstore_ps(a.m + r, rows, m);
    _mm_maskstore_ps(a.l + r, rows, l);
    _mm_maskstore_ps(a.rescale + r, rows, rescale);
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
    for (int r = 0; r < a.n_rows; r += 4) {
        softmax_rows(a, r, a.n_rows - r < 4 ? a.n_rows - r : 4);
    }
}

}  // namespace mixed_kv::kernels::avx2
