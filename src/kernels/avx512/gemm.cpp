// Matrix products of the tile path.

#include "kernels/avx512/avx512.h"
#include "kernels/avx512/simd.h"

namespace mixed_kv::kernels::avx512 {
namespace {

// kRows x kVectors vectors of outputs in registers over the whole k, the last vector `lanes` wide if not
// kFull: 24 sums at most, kVectors loads of b and kRows broadcasts of a per step.
template <int kRows, int kVectors, bool kFull>
inline void gemm_tile(const GemmArgs& g, int i0, int j0, __mmask16 lanes) noexcept {
    const auto load = [lanes](const float* p, int v) {
        return kFull || v + 1 < kVectors ? _mm512_loadu_ps(p + v * 16)
                                         : _mm512_maskz_loadu_ps(lanes, p + v * 16);
    };
    __m512 sum[kRows][kVectors];
    unroll<kRows>([&](auto i) {
        unroll<kVectors>([&](auto v) {
            sum[i.value][v.value] =
                g.accumulate ? load(g.c + (i0 + i.value) * g.c_stride + j0, v.value) : _mm512_setzero_ps();
        });
    });
    const float* a = g.a + i0 * g.a_stride;
    const float* b = g.b + j0;
    for (int k = 0; k < g.k; ++k, b += g.b_stride) {
        __m512 x[kVectors];
        unroll<kVectors>([&](auto v) { x[v.value] = load(b, v.value); });
        unroll<kRows>([&](auto i) {
            const __m512 factor = _mm512_set1_ps(a[i.value * g.a_stride + k]);
            unroll<kVectors>([&](auto v) {
                sum[i.value][v.value] = _mm512_fmadd_ps(factor, x[v.value], sum[i.value][v.value]);
            });
        });
    }
    unroll<kRows>([&](auto i) {
        float* c = g.c + (i0 + i.value) * g.c_stride + j0;
        unroll<kVectors>([&](auto v) {
            if (kFull || v.value + 1 < kVectors) {
                _mm512_storeu_ps(c + v.value * 16, sum[i.value][v.value]);
            } else {
                _mm512_mask_storeu_ps(c + v.value * 16, lanes, sum[i.value][v.value]);
            }
        });
    });
}

template <int kRows>
inline void gemm_rows(const GemmArgs& g, int i) noexcept {
    int j = 0;
    for (; j + 64 <= g.n; j += 64) {
        gemm_tile<kRows, 4, true>(g, i, j, 0xffff);
    }
    for (; j + 16 <= g.n; j += 16) {
        gemm_tile<kRows, 1, true>(g, i, j, 0xffff);
    }
    if (j < g.n) {
        gemm_tile<kRows, 1, false>(g, i, j, lane_mask(g.n - j));
    }
}

}  // namespace

void gemm(const GemmArgs& g) noexcept {
    int i = 0;
    for (; i + 6 <= g.m; i += 6) {
        gemm_rows<6>(g, i);
    }
    switch (g.m - i) {
        case 5:
            gemm_rows<5>(g, i);
            break;
        case 4:
            gemm_rows<4>(g, i);
            break;
        case 3:
            gemm_rows<3>(g, i);
            break;
        case 2:
            gemm_rows<2>(g, i);
            break;
        case 1:
            gemm_rows<1>(g, i);
            break;
        default:
            break;
    }
}

}  // namespace mixed_kv::kernels::avx512
