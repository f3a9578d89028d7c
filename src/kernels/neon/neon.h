#pragma once

#include "formats/format_list.h"
#include "kernels/contract.h"

// Kernels for any 64-bit Arm CPU. The dotprod and i8mm sets take all but the products of cold pages from
// here.
namespace mixed_kv::kernels::neon {

extern const FormatKernels kFormats[];

std::size_t scratch_bytes(int head_dim) noexcept;
void qk_f16(const QkArgs& args) noexcept;
void pv_f16(const PvArgs& args) noexcept;
void decode_f16(const DecodeArgs& args) noexcept;
void gemm(const GemmArgs& args) noexcept;
void logits(const LogitArgs& args) noexcept;
void softmax(const SoftmaxArgs& args) noexcept;
void scale(float* x, std::ptrdiff_t n, float factor) noexcept;
void hadamard(float* x, int n, int size) noexcept;
void fp32_to_fp16(const float* in, std::uint16_t* out, std::ptrdiff_t n) noexcept;
void fp16_to_fp32(const std::uint16_t* in, float* out, std::ptrdiff_t n) noexcept;

// qk_q4_neon and so on, for every cold format. Strong symbols: templates stay inside their files.
#define MIXED_KV_DECLARE_FORMAT(name, bits)                           \
    void qk_##name##_neon(const QkArgs& args) noexcept;               \
    void pv_##name##_neon(const PvArgs& args) noexcept;               \
    void decode_key_##name##_neon(const DecodeArgs& args) noexcept;   \
    void decode_value_##name##_neon(const DecodeArgs& args) noexcept; \
    bool encode_key_##name##_neon(const EncodeArgs& args) noexcept;   \
    bool encode_value_##name##_neon(const EncodeArgs& args) noexcept;
MIXED_KV_FOR_EACH_COLD_FORMAT(MIXED_KV_DECLARE_FORMAT)
#undef MIXED_KV_DECLARE_FORMAT

extern const KernelSet kKernelSet;

}  // namespace mixed_kv::kernels::neon
