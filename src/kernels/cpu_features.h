#pragma once

// What this CPU and operating system can run. Declarations only: the definitions are compiled for the
// baseline, while the kernel tables that point at them are not.
namespace mixed_kv::kernels {

bool cpu_has_scalar() noexcept;  // always
bool cpu_has_avx2() noexcept;    // AVX2, FMA, F16C, BMI1/2, and the OS keeps the YMM registers
bool cpu_has_avx512() noexcept;  // AVX-512 F, BW, VL, DQ, VNNI, and the OS keeps the ZMM registers

}  // namespace mixed_kv::kernels
