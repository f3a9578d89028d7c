// Matrix products, the Hadamard transform and conversions.

#include <cmath>
#include <cstring>

#include "kernels/kernel_test_support.h"
#include "mixed_kv/fp16.h"

namespace mixed_kv::testing {
namespace {

class Dense : public IsaTest {};

TEST_P(Dense, GemmMatchesDoubleReference) {
    const double product_error = double(kernels().product_error);
    std::mt19937 rng(31);
    std::normal_distribution<float> normal;
    struct Shape {
        int m, n, k;
    };
    for (const Shape s : {Shape{1, 1, 1}, Shape{1, 64, 64}, Shape{5, 7, 3}, Shape{6, 16, 64},
                          Shape{13, 40, 64}, Shape{64, 64, 40}, Shape{64, 64, 128}, Shape{64, 128, 64},
                          Shape{37, 33, 65}, Shape{64, 576, 64}, Shape{128, 72, 64}, Shape{7, 17, 5}}) {
        for (const bool accumulate : {false, true}) {
            const int pad = s.m % 2 * 3;
            const Guarded<float> a(std::size_t(s.m - 1) * (s.k + pad) + s.k),
                b(std::size_t(s.k - 1) * (s.n + pad) + s.n), c(std::size_t(s.m - 1) * (s.n + pad) + s.n);
            for (float& x : a.span()) x = normal(rng);
            for (float& x : b.span()) x = normal(rng);
            if (accumulate) {
                for (float& x : c.span()) x = normal(rng);
            }
            const std::vector<float> before(c.span().begin(), c.span().end());
            kernels().gemm(
                {a.data(), s.k + pad, b.data(), s.n + pad, c.data(), s.n + pad, s.m, s.n, s.k, accumulate});
            for (int i = 0; i < s.m; ++i) {
                Reference want;
                for (int j = 0; j < s.n; ++j) {
                    double value = accumulate ? before[std::size_t(i) * (s.n + pad) + j] : 0.0;
                    double bound = (s.k + 4) * 0x1p-24 * std::abs(value);
                    for (int k = 0; k < s.k; ++k) {
                        const double product =
                            double(a[std::size_t(i) * (s.k + pad) + k]) * b[std::size_t(k) * (s.n + pad) + j];
                        value += product;
                        bound += ((s.k + 4) * 0x1p-24 + product_error) * std::abs(product);
                    }
                    want.value.push_back(value);
                    want.bound.push_back(bound);
                }
                SCOPED_TRACE("m " + std::to_string(s.m) + " n " + std::to_string(s.n) + " k " +
                             std::to_string(s.k) + " row " + std::to_string(i));
                ASSERT_TRUE(
                    within_bound(want, {c.data() + std::ptrdiff_t(i) * (s.n + pad), std::size_t(s.n)}));
            }
        }
    }
}

TEST_P(Dense, HadamardEqualsTheDefinitionAndInvertsItself) {
    std::mt19937 rng(32);
    std::normal_distribution<float> normal;
    for (const int n : {32, 64, 96, 128, 192, 256, 512, 576, 1024, 40}) {
        const int size = hadamard_size(n);
        const Guarded<float> x(n);
        for (float& v : x.span()) v = normal(rng);
        const std::vector<float> start(x.span().begin(), x.span().end());
        std::vector<float> scalar = start;
        kernels().hadamard(x.data(), n, size);
        scalar_kernels().hadamard(scalar.data(), n, size);
        for (int i = 0; i < n; ++i) {
            double want = 0;
            const int group = i / size * size;
            for (int j = 0; j < size; ++j) {
                want += (__builtin_popcount(unsigned(i - group) & unsigned(j)) % 2 != 0 ? -1.0 : 1.0) *
                        start[group + j];
            }
            ASSERT_EQ(x[i], scalar[i]) << "n " << n << " element " << i;
            ASSERT_NEAR(x[i], want / std::sqrt(double(size)), 2e-6);
        }
        kernels().hadamard(x.data(), n, size);
        for (int i = 0; i < n; ++i) {
            ASSERT_NEAR(x[i], start[i], 4e-6);
        }
    }
}

TEST_P(Dense, EveryBinary16ConvertsExactly) {
    const Guarded<std::uint16_t> half(65536);
    const Guarded<float> single(65536);
    const Guarded<std::uint16_t> back(65536);
    for (int i = 0; i < 65536; ++i) half[i] = std::uint16_t(i);
    kernels().fp16_to_fp32(half.data(), single.data(), 65536);
    kernels().fp32_to_fp16(single.data(), back.data(), 65536);
    for (int i = 0; i < 65536; ++i) {
        const bool is_nan = (i & 0x7fff) > 0x7c00;
        const float want = fp16_to_fp32(std::uint16_t(i));
        if (is_nan) {
            ASSERT_TRUE(std::isnan(single[i]) && std::isnan(want));
            ASSERT_EQ(back[i], i | 0x200);  // quieted
        } else {
            ASSERT_EQ(std::memcmp(&single[i], &want, sizeof want), 0) << i;
            ASSERT_EQ(back[i], i);
        }
    }
}

TEST_P(Dense, FloatsRoundToTheNearestBinary16) {
    std::mt19937 rng(33);
    for (const int n : {1, 7, 8, 9, 31, 4096}) {
        const Guarded<float> in(n);
        const Guarded<std::uint16_t> out(n);
        for (int i = 0; i < n; ++i) {
            // Exponents around and beyond binary16's, and the ties between two of its neighbours.
            const std::uint32_t bits = i % 3 == 0 ? rng() : (rng() & 0x8fffffffu) + 0x38000000u;
            const std::uint32_t tie = i % 2 == 0 ? bits : (bits & 0xffffe000u) | 0x1000u;
            std::memcpy(&in[i], &tie, sizeof tie);
        }
        kernels().fp32_to_fp16(in.data(), out.data(), n);
        for (int i = 0; i < n; ++i) {
            ASSERT_EQ(out[i], fp32_to_fp16(in[i])) << in[i];
        }
    }
}

TEST_P(Dense, ScaleMultipliesEveryElement) {
    for (const int n : {1, 7, 16, 65}) {
        const Guarded<float> x(n);
        for (int i = 0; i < n; ++i) x[i] = float(i) + 0.1f;
        kernels().scale(x.data(), n, 0.3f);
        for (int i = 0; i < n; ++i) {
            ASSERT_EQ(x[i], (float(i) + 0.1f) * 0.3f);
        }
    }
}

MIXED_KV_FOR_EVERY_ISA(Dense);

}  // namespace
}  // namespace mixed_kv::testing
