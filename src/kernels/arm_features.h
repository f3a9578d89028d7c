#pragma once

#include <cstdint>

// Which instructions of 64-bit Arm the kernel sets may use, from what operating systems say. Apart from them,
// so that tests on any machine can ask.
namespace mixed_kv::kernels {

struct ArmFeatures {
    bool dotprod = false;  // SDOT
    bool i8mm = false;     // USMMLA; all CPUs that have it have SDOT
};

// Linux: the words AT_HWCAP and AT_HWCAP2 of the auxiliary vector.
constexpr ArmFeatures arm_features_of_linux(std::uint64_t hwcap, std::uint64_t hwcap2) noexcept {
    constexpr std::uint64_t kAsimdDotProduct = std::uint64_t(1) << 20;  // HWCAP_ASIMDDP
    constexpr std::uint64_t kInt8Matrix = std::uint64_t(1) << 13;       // HWCAP2_I8MM
    const bool dotprod = (hwcap & kAsimdDotProduct) != 0;
    return {dotprod, dotprod && (hwcap2 & kInt8Matrix) != 0};
}

// macOS: has(name) says whether the integer of that name that sysctl knows is there and not 0.
template <typename Has>
constexpr ArmFeatures arm_features_of_macos(Has&& has) noexcept {
    const bool dotprod = has("hw.optional.arm.FEAT_DotProd");
    return {dotprod, dotprod && has("hw.optional.arm.FEAT_I8MM")};
}

}  // namespace mixed_kv::kernels
