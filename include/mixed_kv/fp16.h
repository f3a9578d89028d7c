#pragma once

#include <bit>
#include <cstdint>

namespace mixed_kv {

// IEEE 754 binary16 as stored in KV rows. A bare integer, so that no translation unit converts by accident.
using fp16_t = std::uint16_t;

// Exact: every binary16 value, subnormals, infinities and NaN included, has a binary32 value.
inline float fp16_to_fp32(fp16_t h) noexcept {
    const std::uint32_t sign = static_cast<std::uint32_t>(h & 0x8000u) << 16;
    const std::uint32_t exponent = (h >> 10) & 0x1fu;
    const std::uint32_t mantissa = h & 0x3ffu;
    if (exponent == 0x1f) return std::bit_cast<float>(sign | 0x7f800000u | (mantissa << 13));
    if (exponent != 0) return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (mantissa << 13));
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;  // zero or subnormal
    return sign ? -magnitude : magnitude;
}

// Rounds to nearest even, as the F16C instruction VCVTPS2PH with _MM_FROUND_TO_NEAREST_INT does.
inline fp16_t fp32_to_fp16(float f) noexcept {
    const std::uint32_t bits = std::bit_cast<std::uint32_t>(f);
    const std::uint32_t sign = (bits >> 16) & 0x8000u;
    const std::uint32_t magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return static_cast<fp16_t>(sign | 0x7e00u | ((magnitude >> 13) & 0x3ffu));
    if (magnitude >= 0x477ff000u) return static_cast<fp16_t>(sign | 0x7c00u);  // 65520 and above: infinity
    if (magnitude < 0x38800000u) {  // below 2^-14: subnormal; adding 0.5 lets the FPU round to 2^-24
        const float rounded = std::bit_cast<float>(magnitude) + 0.5f;
        return static_cast<fp16_t>(sign | (std::bit_cast<std::uint32_t>(rounded) - 0x3f000000u));
    }
    const std::uint32_t odd = (magnitude >> 13) & 1u;
    return static_cast<fp16_t>(sign | ((magnitude - 0x38000000u + 0xfffu + odd) >> 13));
}

inline bool fp16_is_finite(fp16_t h) noexcept { return (h & 0x7c00u) != 0x7c00u; }

}  // namespace mixed_kv
