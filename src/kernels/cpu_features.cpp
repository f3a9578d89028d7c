#include "kernels/cpu_features.h"

#include <cstddef>
#include <cstdint>

#include "kernels/arm_features.h"

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace mixed_kv::kernels {

bool cpu_has_scalar() noexcept { return true; }

#if defined(__x86_64__)
namespace {

struct Registers {
    std::uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
};

Registers cpuid(unsigned leaf, unsigned subleaf) noexcept {
    Registers r;
    if (__get_cpuid_count(leaf, subleaf, &r.eax, &r.ebx, &r.ecx, &r.edx) == 0) {
        return {};  // beyond the highest leaf: nothing is supported
    }
    return r;
}

constexpr bool has(std::uint32_t word, std::uint32_t bits) noexcept { return (word & bits) == bits; }

// Register state that the operating system saves, XCR0.
std::uint64_t enabled_state() noexcept {
    if (!has(cpuid(1, 0).ecx, bit_OSXSAVE)) {
        return 0;
    }
    std::uint32_t low = 0;
    std::uint32_t high = 0;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return std::uint64_t(high) << 32 | low;
}

// The kernel saves 8 KiB more per thread once a process uses tiles, and therefore wants to be asked first,
// for all threads at once. It refuses where a thread's alternative signal stack is too small for that.
bool may_use_tiles() noexcept {
#if defined(__linux__)
    constexpr long kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM, Linux 5.16
    constexpr long kTileData = 18;
    return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
    return false;
#endif
}

constexpr std::uint64_t kYmmState = 0x06;
constexpr std::uint64_t kZmmState = 0xe6;

}  // namespace

bool cpu_has_avx2() noexcept {
    return has(cpuid(1, 0).ecx, bit_AVX | bit_FMA | bit_F16C) &&
           has(cpuid(7, 0).ebx, bit_AVX2 | bit_BMI | bit_BMI2) && (enabled_state() & kYmmState) == kYmmState;
}

bool cpu_has_avxvnni() noexcept {
    constexpr std::uint32_t kAvxVnni = 1u << 4;  // leaf 7.1, EAX
    return cpu_has_avx2() && has(cpuid(7, 1).eax, kAvxVnni);
}

bool cpu_has_avx512() noexcept {
    const Registers leaf7 = cpuid(7, 0);
    return cpu_has_avx2() && has(leaf7.ebx, bit_AVX512F | bit_AVX512BW | bit_AVX512VL | bit_AVX512DQ) &&
           has(leaf7.ecx, bit_AVX512VNNI) && (enabled_state() & kZmmState) == kZmmState;
}

bool cpu_has_amx() noexcept {
    constexpr std::uint32_t kAvx512Bf16 = 1u << 5;                           // leaf 7.1, EAX
    constexpr std::uint32_t kAmxBf16Tile8 = 1u << 22 | 1u << 24 | 1u << 25;  // leaf 7.0, EDX
    constexpr std::uint64_t kTileState = std::uint64_t(1) << 17 | std::uint64_t(1) << 18;
    // One answer for the life of the process: permission, once given, stays.
    static const bool has_amx = cpu_has_avx512() && has(cpuid(7, 0).edx, kAmxBf16Tile8) &&
                                has(cpuid(7, 1).eax, kAvx512Bf16) &&
                                (enabled_state() & kTileState) == kTileState && may_use_tiles();
    return has_amx;
}

#else

bool cpu_has_avx2() noexcept { return false; }
bool cpu_has_avxvnni() noexcept { return false; }
bool cpu_has_avx512() noexcept { return false; }
bool cpu_has_amx() noexcept { return false; }

#endif

#if defined(__aarch64__)
namespace {

ArmFeatures arm_features() noexcept {
#if defined(__linux__)
    return arm_features_of_linux(getauxval(AT_HWCAP), getauxval(AT_HWCAP2));
#elif defined(__APPLE__)
    return arm_features_of_macos([](const char* name) noexcept {
        int value = 0;
        std::size_t size = sizeof value;
        return sysctlbyname(name, &value, &size, nullptr, 0) == 0 && value != 0;
    });
#else
    return {};
#endif
}

}  // namespace

bool cpu_has_neon() noexcept { return true; }
bool cpu_has_dotprod() noexcept { return arm_features().dotprod; }
bool cpu_has_i8mm() noexcept { return arm_features().i8mm; }

#else

bool cpu_has_neon() noexcept { return false; }
bool cpu_has_dotprod() noexcept { return false; }
bool cpu_has_i8mm() noexcept { return false; }

#endif

}  // namespace mixed_kv::kernels
