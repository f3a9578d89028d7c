#pragma once

// AVX-512 in AVX2 instructions, so that the AVX-512 kernels' source runs on CPUs without it. Nearly all of it
// is SIMDe (Debian: libsimde-dev); what its version 0.7.4 lacks, or does too slowly or too boldly for these
// tests, follows here. A function that is in neither fails to compile: the compiler refuses an AVX-512
// intrinsic in a file built without -mavx512f.
#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>
#include <simde/x86/f16c.h>

#include <cmath>
#include <cstdint>
#include <cstring>

namespace mixed_kv::emulation {
namespace {

inline __m256 half_of(__m512 x, int i) noexcept {
    __m256 h[2];
    std::memcpy(h, &x, sizeof x);
    return h[i];
}

inline __m256i half_of(__m512i x, int i) noexcept {
    __m256i h[2];
    std::memcpy(h, &x, sizeof x);
    return h[i];
}

inline __m512 join(__m256 low, __m256 high) noexcept {
    const __m256 h[2] = {low, high};
    __m512 x;
    std::memcpy(&x, h, sizeof x);
    return x;
}

inline __m512i join(__m256i low, __m256i high) noexcept {
    const __m256i h[2] = {low, high};
    __m512i x;
    std::memcpy(&x, h, sizeof x);
    return x;
}

// Unsigned bytes of a times signed bytes of b, sums of four added to 32 bits without saturation.
inline __m256i dpbusd(__m256i sum, __m256i a, __m256i b) noexcept {
    const __m256i even = _mm256_madd_epi16(_mm256_and_si256(a, _mm256_set1_epi16(0xff)),
                                           _mm256_srai_epi16(_mm256_slli_epi16(b, 8), 8));
    const __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16(a, 8), _mm256_srai_epi16(b, 8));
    return _mm256_add_epi32(sum, _mm256_add_epi32(even, odd));
}

inline __m512i dpbusd(__m512i sum, __m512i a, __m512i b) noexcept {
    return join(dpbusd(half_of(sum, 0), half_of(a, 0), half_of(b, 0)),
                dpbusd(half_of(sum, 1), half_of(a, 1), half_of(b, 1)));
}

// Signed 16-bit products, sums of two added to 32 bits without saturation.
inline __m512i dpwssd(__m512i sum, __m512i a, __m512i b) noexcept {
    const auto half = [&](int i) {
        return _mm256_add_epi32(half_of(sum, i), _mm256_madd_epi16(half_of(a, i), half_of(b, i)));
    };
    return join(half(0), half(1));
}

inline __m512 cvtph_ps(__m256i x) noexcept {
    return join(_mm256_cvtph_ps(_mm256_castsi256_si128(x)), _mm256_cvtph_ps(_mm256_extracti128_si256(x, 1)));
}

inline __m512 cvtepi32_ps(__m512i x) noexcept {
    return join(_mm256_cvtepi32_ps(half_of(x, 0)), _mm256_cvtepi32_ps(half_of(x, 1)));
}

// Rounded to nearest even; what is no 32-bit integer, NaN included, becomes the smallest one.
inline __m512i cvtps_epi32(__m512 x) noexcept {
    return join(_mm256_cvtps_epi32(half_of(x, 0)), _mm256_cvtps_epi32(half_of(x, 1)));
}

inline __m512i srai_epi32(__m512i x, int n) noexcept {
    const __m128i count = _mm_cvtsi32_si128(n);
    return join(_mm256_sra_epi32(half_of(x, 0), count), _mm256_sra_epi32(half_of(x, 1), count));
}

// p * 2^n lane by lane, as the instruction has it for the arguments of exp: n is an integer or NaN.
inline __m512 maskz_scalef_ps(__mmask16 lanes, __m512 p, __m512 n) noexcept {
    float x[16], exponent[16];
    std::memcpy(x, &p, sizeof x);
    std::memcpy(exponent, &n, sizeof exponent);
    for (int i = 0; i < 16; ++i) {
        x[i] = (lanes >> i & 1) == 0     ? 0.0f
               : std::isnan(exponent[i]) ? exponent[i]
                                         : std::ldexp(x[i], static_cast<int>(exponent[i]));
    }
    std::memcpy(&p, x, sizeof x);
    return p;
}

// Masked loads and stores touch the chosen elements only, as the hardware's do: no fault beyond them.
template <typename Vector, typename Element>
inline Vector maskz_load(std::uint32_t lanes, const void* from) noexcept {
    Element x[sizeof(Vector) / sizeof(Element)] = {};
    for (std::size_t i = 0; i < sizeof x / sizeof x[0]; ++i) {
        if ((lanes >> i & 1) != 0) {
            std::memcpy(&x[i], static_cast<const Element*>(from) + i, sizeof x[i]);
        }
    }
    Vector v;
    std::memcpy(&v, x, sizeof v);
    return v;
}

inline void mask_store_ps(void* to, __mmask16 lanes, __m512 v) noexcept {
    float x[16];
    std::memcpy(x, &v, sizeof x);
    for (int i = 0; i < 16; ++i) {
        if ((lanes >> i & 1) != 0) {
            std::memcpy(static_cast<float*>(to) + i, &x[i], sizeof x[i]);
        }
    }
}

// Any function of three bits is a table of eight; SIMDe has all 256, at some cost to the compiler. Only
// what the kernels use is here.
template <int kTable>
inline __m512i ternarylogic(__m512i a, __m512i b, __m512i c) noexcept {
    static_assert(kTable == 0xea);
    return _mm512_or_si512(_mm512_and_si512(a, b), c);
}

// 128-bit parts i0 and i1 of a, then i2 and i3 of b.
inline __m512 shuffle_f32x4(__m512 a, __m512 b, int order) noexcept {
    __m128 x[4], y[4];
    std::memcpy(x, &a, sizeof x);
    std::memcpy(y, &b, sizeof y);
    const __m128 r[4] = {x[order & 3], x[order >> 2 & 3], y[order >> 4 & 3], y[order >> 6 & 3]};
    std::memcpy(&a, r, sizeof r);
    return a;
}

}  // namespace
}  // namespace mixed_kv::emulation

#undef _mm512_dpbusd_epi32
#define _mm512_dpbusd_epi32(sum, a, b) ::mixed_kv::emulation::dpbusd(sum, a, b)
#undef _mm512_dpwssd_epi32
#define _mm512_dpwssd_epi32(sum, a, b) ::mixed_kv::emulation::dpwssd(sum, a, b)
#undef _mm512_cvtps_epi32
#define _mm512_cvtps_epi32(x) ::mixed_kv::emulation::cvtps_epi32(x)
#undef _mm512_ternarylogic_epi32
#define _mm512_ternarylogic_epi32(a, b, c, table) ::mixed_kv::emulation::ternarylogic<table>(a, b, c)
#undef _mm512_maskz_scalef_ps
#define _mm512_maskz_scalef_ps(k, a, b) ::mixed_kv::emulation::maskz_scalef_ps(k, a, b)
#undef _mm256_maskz_loadu_epi16
#define _mm256_maskz_loadu_epi16(k, p) ::mixed_kv::emulation::maskz_load<__m256i, std::uint16_t>(k, p)
#undef _mm512_maskz_loadu_ps
#define _mm512_maskz_loadu_ps(k, p) ::mixed_kv::emulation::maskz_load<__m512, float>(k, p)
#undef _mm512_mask_storeu_ps
#define _mm512_mask_storeu_ps(p, k, x) ::mixed_kv::emulation::mask_store_ps(p, k, x)

// Not in SIMDe 0.7.4.
#if !defined(_mm512_cvtph_ps)
#define _mm512_cvtph_ps(x) ::mixed_kv::emulation::cvtph_ps(x)
#endif
#if !defined(_mm512_cvtepi32_ps)
#define _mm512_cvtepi32_ps(x) ::mixed_kv::emulation::cvtepi32_ps(x)
#endif
#if !defined(_mm512_srai_epi32)
#define _mm512_srai_epi32(x, n) ::mixed_kv::emulation::srai_epi32(x, n)
#endif
#if !defined(_mm512_shuffle_f32x4)
#define _mm512_shuffle_f32x4(a, b, order) ::mixed_kv::emulation::shuffle_f32x4(a, b, order)
#endif
#if !defined(_mm512_extractf32x8_ps)
#define _mm512_extractf32x8_ps(x, i) ::mixed_kv::emulation::half_of(x, i)
#endif
#if !defined(_mm512_cvtss_f32)
#define _mm512_cvtss_f32(x) _mm256_cvtss_f32(::mixed_kv::emulation::half_of(x, 0))
#endif
