#pragma once

#include "kernels/avx2/products.h"
#include "kernels/avx2/registers.h"

namespace mixed_kv::kernels::avx2 {

// Two neighbours of the summed axis as integers: what vpmaddwd multiplies in a lane.
struct IntPair {
    std::int16_t first, second;
};

namespace {

// The elements of a matrix that is multiplied, 32 bits each: floats, or pairs of integers whose products are
// summed as 32-bit integers.
inline __m256 load_elements(const float* p) noexcept { return _mm256_loadu_ps(p); }
inline __m256i load_elements(const IntPair* p) noexcept { return load_i(p); }
inline __m256 broadcast_element(const float* p) noexcept { return in_register(_mm256_broadcast_ss(p)); }
inline __m256i broadcast_element(const IntPair* p) noexcept {
    std::int32_t bits;
    std::memcpy(&bits, p, sizeof bits);
    return _mm256_set1_epi32(bits);
}
inline void add_product(__m256& sum, __m256 a, __m256 b) noexcept { sum = _mm256_fmadd_ps(a, b, sum); }
inline void add_product(__m256i& sum, __m256i a, __m256i b) noexcept { add_products_in_place(sum, a, b); }
inline __m256 no_sum(const float*) noexcept { return _mm256_setzero_ps(); }
inline __m256i no_sum(const IntPair*) noexcept { return _mm256_setzero_si256(); }

// a[kRows][k] * b[k][16], in registers: 2 kRows sums, 2 loads of b and kRows broadcasts of a per step.
// finish(Int<i>, s0, s1) takes the sums of row i. Out of line: inlined into several loops, it loses registers
// to them.
template <int kRows, typename T, typename Finish>
__attribute__((noinline)) void matrix_tile(const T* a, std::ptrdiff_t a_stride, const T* b,
                                           std::ptrdiff_t b_stride, int k,
                                           const Finish& finish_rows) noexcept {
    using Vector = decltype(no_sum(a));
    Vector sum[kRows][2];
    unroll<kRows>([&](auto i) { sum[i.value][0] = sum[i.value][1] = no_sum(a); });
    const T* end = a + k;
#pragma GCC unroll 4
    for (; a < end; ++a, b += b_stride) {
        const Vector b0 = load_elements(b), b1 = load_elements(b + 8);
        unroll<kRows>([&](auto i) {
            const Vector x = broadcast_element(a + i.value * a_stride);
            add_product(sum[i.value][0], x, b0);
            add_product(sum[i.value][1], x, b1);
        });
    }
    const Finish finish = finish_rows;  // a copy, which nothing that it stores can change
    unroll<kRows>([&](auto i) { finish(i, sum[i.value][0], sum[i.value][1]); });
}

// c[i][16] (+)= the sums.
struct StoreSums {
    float* c;
    std::ptrdiff_t stride;
    bool accumulate;

    template <typename Row>
    void operator()(Row i, __m256 s0, __m256 s1) const noexcept {
        float* out = c + i.value * stride;
        if (accumulate) {
            s0 = _mm256_add_ps(_mm256_loadu_ps(out), s0);
            s1 = _mm256_add_ps(_mm256_loadu_ps(out + 8), s1);
        }
        _mm256_storeu_ps(out, s0);
        _mm256_storeu_ps(out + 8, s1);
    }
};

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
