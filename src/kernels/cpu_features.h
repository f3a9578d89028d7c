#pragma once

// What this CPU and operating system can run. Declarations only: the definitions are compiled for the
// baseline, while the kernel tables that point at them are not.
namespace mixed_kv::kernels {

bool cpu_has_scalar() noexcept;   // always
bool cpu_has_avx2() noexcept;     // AVX2, FMA, F16C, BMI1/2, and the OS keeps the YMM registers
bool cpu_has_avxvnni() noexcept;  // those of the AVX2 set and AVX-VNNI
bool cpu_has_avx512() noexcept;   // AVX-512 F, BW, VL, DQ, VNNI, and the OS keeps the ZMM registers

// The AVX-512 set's features, AVX512-BF16, AMX tiles with int8 and bfloat16, and the OS keeps the tiles and
// lets this process use them: Linux wants to be asked, which this does, and may refuse.
bool cpu_has_amx() noexcept;

bool cpu_has_neon() noexcept;     // any 64-bit Arm CPU
bool cpu_has_dotprod() noexcept;  // SDOT: Cortex-A76, Neoverse N1, Apple M1
bool cpu_has_i8mm() noexcept;     // that and USMMLA: Neoverse V1, N2, Cortex-X2, Apple M2

}  // namespace mixed_kv::kernels
