// Matrix products, the Hadamard transform, conversions.

#include "formats/block_layout.h"
#include "kernels/avx2/avx2.h"
#include "kernels/avx2/matrix_tile.h"
#include "kernels/avx2/simd.h"

namespace mixed_kv::kernels::avx2 {
namespace {

// The last n < 16 columns of kRows rows.
template <int kRows>
inline void matrix_edge(const GemmArgs& g, int i0, int j0, int n) noexcept {
    const __m256i mask0 = lane_mask(n < 8 ? n : 8), mask1 = lane_mask(n > 8 ? n - 8 : 0);
    __m256 sum[kRows][2];
    unroll<kRows>([&](auto i) { sum[i.value][0] = sum[i.value][1] = _mm256_setzero_ps(); });
    const float* a = g.a + i0 * g.a_stride;
    const float* b = g.b + j0;
    for (int k = 0; k < g.k; ++k, b += g.b_stride) {
        const __m256 b0 = _mm256_maskload_ps(b, mask0), b1 = _mm256_maskload_ps(b + 8, mask1);
        unroll<kRows>([&](auto i) {
            const __m256 x = in_register(_mm256_broadcast_ss(a + i.value * g.a_stride + k));
            sum[i.value][0] = _mm256_fmadd_ps(x, b0, sum[i.value][0]);
            sum[i.value][1] = _mm256_fmadd_ps(x, b1, sum[i.value][1]);
        });
    }
    unroll<kRows>([&](auto i) {
        float* c = g.c + (i0 + i.value) * g.c_stride + j0;
        __m256 s0 = sum[i.value][0], s1 = sum[i.value][1];
        if (g.accumulate) {
            s0 = _mm256_add_ps(_mm256_maskload_ps(c, mask0), s0);
            s1 = _mm256_add_ps(_mm256_maskload_ps(c + 8, mask1), s1);
        }
        _mm256_maskstore_ps(c, mask0, s0);
        _mm256_maskstore_ps(c + 8, mask1, s1);
    });
}

}  // namespace

// 16 columns of b for all rows of a. They are copied together first: at strides of a power of two they would
// share a few sets of L1 and push each other out.
void gemm(const GemmArgs& g) noexcept {
    constexpr int kPanelRows = 128;
    alignas(64) float panel[kPanelRows * 16];
    int j = 0;
    for (; j + 16 <= g.n; j += 16) {
        for (int k = 0; k < g.k; k += kPanelRows) {
            const int n = g.k - k < kPanelRows ? g.k - k : kPanelRows;
            const float* b = g.b + k * g.b_stride + j;
            for (int i = 0; i < n; ++i, b += g.b_stride) {
                _mm256_store_ps(panel + i * 16, _mm256_loadu_ps(b));
                _mm256_store_ps(panel + i * 16 + 8, _mm256_loadu_ps(b + 8));
            }
            for_row_blocks(g.m, [&](int i, auto rows) {
                matrix_tile<decltype(rows)::value>(
                    g.a + i * g.a_stride + k, g.a_stride, panel, 16, n,
                    StoreSums{g.c + i * g.c_stride + j, g.c_stride, g.accumulate || k != 0});
            });
        }
    }
    if (j < g.n) {
        for_row_blocks(g.m, [&](int i, auto rows) { matrix_edge<decltype(rows)::value>(g, i, j, g.n - j); });
    }
}

void scale(float* x, std::ptrdiff_t n, float factor) noexcept {
    const __m256 f = _mm256_set1_ps(factor);
    std::ptrdiff_t i = 0;
    for (; i + 8 <= n; i += 8) {
        _mm256_storeu_ps(x + i, _mm256_mul_ps(_mm256_loadu_ps(x + i), f));
    }
    for (; i < n; ++i) {
        x[i] *= factor;
    }
}

// Butterflies at distance 1, 2, 4 inside vectors, then between vectors; the order of the sums is the scalar
// one.
void hadamard(float* x, int n, int size) noexcept {
    if (size < 8) {
        return;  // no rotation (sizes are 1 or at least 32)
    }
    const __m256 norm = _mm256_set1_ps(formats::hadamard_norm(size));
    for (float* group = x; group < x + n; group += size) {
        for (int i = 0; i < size; i += 8) {
            __m256 v = _mm256_loadu_ps(group + i);
            __m256 w = _mm256_permute_ps(v, 0xb1);
            v = _mm256_blend_ps(_mm256_add_ps(v, w), _mm256_sub_ps(w, v), 0xaa);
            w = _mm256_permute_ps(v, 0x4e);
            v = _mm256_blend_ps(_mm256_add_ps(v, w), _mm256_sub_ps(w, v), 0xcc);
            w = _mm256_permute2f128_ps(v, v, 0x01);
            v = _mm256_blend_ps(_mm256_add_ps(v, w), _mm256_sub_ps(w, v), 0xf0);
            _mm256_storeu_ps(group + i, v);
        }
        for (int h = 8; h < size; h *= 2) {
            const bool last = h * 2 == size;
            for (int i = 0; i < size; i += 2 * h) {
                for (int j = i; j < i + h; j += 8) {
                    const __m256 a = _mm256_loadu_ps(group + j), b = _mm256_loadu_ps(group + j + h);
                    const __m256 sum = _mm256_add_ps(a, b), difference = _mm256_sub_ps(a, b);
                    _mm256_storeu_ps(group + j, last ? _mm256_mul_ps(sum, norm) : sum);
                    _mm256_storeu_ps(group + j + h, last ? _mm256_mul_ps(difference, norm) : difference);
                }
            }
        }
    }
}

void fp32_to_fp16(const float* in, std::uint16_t* out, std::ptrdiff_t n) noexcept {
    std::ptrdiff_t i = 0;
    for (; i + 8 <= n; i += 8) {
        _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i), to_halves(_mm256_loadu_ps(in + i)));
    }
    if (i < n) {
        alignas(16) std::uint16_t buffer[8];
        const __m256 x = _mm256_maskload_ps(in + i, lane_mask(static_cast<int>(n - i)));
        _mm_store_si128(reinterpret_cast<__m128i*>(buffer), to_halves(x));
        std::memcpy(out + i, buffer, std::size_t(n - i) * sizeof buffer[0]);
    }
}

void fp16_to_fp32(const std::uint16_t* in, float* out, std::ptrdiff_t n) noexcept {
    std::ptrdiff_t i = 0;
    for (; i + 8 <= n; i += 8) {
        _mm256_storeu_ps(out + i, load_halves(in + i));
    }
    if (i < n) {
        const int rest = static_cast<int>(n - i);
        _mm256_maskstore_ps(out + i, lane_mask(rest), load_halves(in + i, rest));
    }
}

}  // namespace mixed_kv::kernels::avx2
