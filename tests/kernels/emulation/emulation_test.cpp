// The emulation itself, where it is ours rather than SIMDe's, against plain arithmetic.

#include "avx512_emulation.h"
#include "kernels/kernel_test_support.h"

namespace mixed_kv::testing {
namespace {

class Avx512Emulation : public ::testing::Test {
  protected:
    void SetUp() override {
        if (!is_supported("avx512_emulated")) {
            GTEST_SKIP() << "the emulation needs AVX2";
        }
    }
};

TEST_F(Avx512Emulation, DotProductsWrapAndDoNotSaturate) {
    std::mt19937 rng(61);
    for (int round = 0; round < 200; ++round) {
        std::uint8_t a[64];
        std::int8_t b[64];
        std::int32_t sum[16], got[16];
        for (int i = 0; i < 64; ++i) {
            a[i] = round == 0 ? 255 : static_cast<std::uint8_t>(rng());
            b[i] = round == 0 ? (i < 32 ? -128 : 127) : static_cast<std::int8_t>(rng());
        }
        for (std::int32_t& s : sum) s = static_cast<std::int32_t>(rng());
        const __m512i result =
            _mm512_dpbusd_epi32(_mm512_loadu_si512(sum), _mm512_loadu_si512(a), _mm512_loadu_si512(b));
        std::memcpy(got, &result, sizeof got);
        for (int i = 0; i < 16; ++i) {
            std::int32_t products = 0;
            for (int k = 0; k < 4; ++k) products += a[4 * i + k] * b[4 * i + k];
            ASSERT_EQ(got[i], static_cast<std::int32_t>(static_cast<std::uint32_t>(sum[i]) +
                                                        static_cast<std::uint32_t>(products)));
        }
    }
}

TEST_F(Avx512Emulation, ScalefMultipliesByPowersOfTwo) {
    for (int n = -126; n <= 127; ++n) {
        float got[16];
        const __m512 x = _mm512_maskz_scalef_ps(0xfffe, _mm512_set1_ps(1.25f), _mm512_set1_ps(float(n)));
        std::memcpy(got, &x, sizeof got);
        ASSERT_EQ(got[0], 0.0f);
        ASSERT_EQ(got[7], std::ldexp(1.25f, n));
    }
}

TEST_F(Avx512Emulation, MaskedLoadsAndStoresStopAtTheLastLane) {
    for (int n = 0; n <= 16; ++n) {
        const Guarded<float> x(16 + std::size_t(n)), out(16 + std::size_t(n));
        const Guarded<std::uint16_t> half(16 + std::size_t(n));
        for (int i = 0; i < n; ++i) {
            x[16 + i] = float(i + 1);
            half[16 + i] = std::uint16_t(i + 1);
        }
        const auto lanes = static_cast<__mmask16>((1u << n) - 1u);
        _mm512_mask_storeu_ps(out.data() + 16, lanes, _mm512_maskz_loadu_ps(lanes, x.data() + 16));
        const __m256i loaded = _mm256_maskz_loadu_epi16(lanes, half.data() + 16);
        std::uint16_t got[16];
        std::memcpy(got, &loaded, sizeof got);
        for (int i = 0; i < 16; ++i) {
            ASSERT_EQ(got[i], i < n ? i + 1 : 0);
            if (i < n) {
                ASSERT_EQ(out[16 + i], float(i + 1));
            }
        }
    }
}

}  // namespace
}  // namespace mixed_kv::testing
