#pragma once

#include "kernels/avx2/registers.h"
#include "kernels/avx2/simd.h"

namespace mixed_kv::kernels::avx2 {
namespace {

// c[kRows][16] (+)= a[kRows][k] * b[k][16], in registers: 2 kRows sums, 2 loads of b and kRows broadcasts of
// a per step. Out of line: inlined into several loops, it loses registers to them.
template <int kRows>
__attribute__((noinline)) void matrix_tile(const float* a, std::ptrdiff_t a_stride, const float* b,
                                           std::ptrdiff_t b_stride, int k, float* c, std::ptrdiff_t c_stride,
                                           bool accumulate) noexcept {
    __m256 sum[kRows][2];
    unroll<kRows>([&](auto i) { sum[i.value][0] = sum[i.value][1] = _mm256_setzero_ps(); });
    const float* end = a + k;
#pragma GCC unroll 4
    for (; a < end; ++a, b += b_stride) {
        const __m256 b0 = _mm256_loadu_ps(b), b1 = _mm256_loadu_ps(b + 8);
        unroll<kRows>([&](auto i) {
            const __m256 x = in_register(_mm256_broadcast_ss(a + i.value * a_stride));
            sum[i.value][0] = _mm256_fmadd_ps(x, b0, sum[i.value][0]);
            sum[i.value][1] = _mm256_fmadd_ps(x, b1, sum[i.value][1]);
        });
    }
    unroll<kRows>([&](auto i) {
        float* out = c + i.value * c_stride;
        __m256 s0 = sum[i.value][0], s1 = sum[i.value][1];
        if (accumulate) {
            s0 = _mm256_add_ps(_mm256_loadu_ps(out), s0);
            s1 = _mm256_add_ps(_mm256_loadu_ps(out + 8), s1);
        }
        _mm256_storeu_ps(out, s0);
        _mm256_storeu_ps(out + 8, s1);
    });
}

// Calls f(r, Int<n>{}) for blocks of up to 6 rows of nearly equal size.
template <typename F>
inline void for_row_blocks(int n_rows, F&& f) {
    int blocks = (n_rows + 5) / 6;
    for (int r = 0; r < n_rows; --blocks) {
        const int n = (n_rows - r + blocks - 1) / blocks;
        switch (n) {
            case 6:
                f(r, Int<6>{});
                break;
            case 5:
                f(r, Int<5>{});
                break;
            case 4:
                f(r, Int<4>{});
                break;
            case 3:
                f(r, Int<3>{});
                break;
            case 2:
                f(r, Int<2>{});
                break;
            default:
                f(r, Int<1>{});
                break;
        }
        r += n;
    }
}

}  // namespace
}  // namespace mixed_kv::kernels::avx2
