#pragma once

#include "kernels/contract.h"

// The portable kernels: correct everywhere, and the definition of the integer scheme of the others.
namespace mixed_kv::kernels::scalar {

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

extern const KernelSet kKernelSet;

}  // namespace mixed_kv::kernels::scalar
