#pragma once

#include "formats/format_list.h"
#include "kernels/contract.h"

// Kernels for AVX-512 F, BW, VL, DQ and VNNI: what decode attention and the tile path spend their time in.
// The rest of the set (encoders, decoders, conversions, the rotation) is the AVX2 set's: such a CPU runs it,
// each is called once per page or per query row, and 512-bit registers would save little of that.
namespace mixed_kv::kernels::avx512 {

std::size_t scratch_bytes(int head_dim) noexcept;
void qk_f16(const QkArgs& args) noexcept;
void pv_f16(const PvArgs& args) noexcept;
// FP16 pages with many query rows, fp16_blocks.cpp: from here on converting a page once costs less than
// converting it for every few rows. Fewer keys leave most lanes of a product empty.
inline constexpr int kBlockRows = 16, kBlockKeys = 8;
void qk_f16_blocks(const QkArgs& args) noexcept;
void pv_f16_blocks(const PvArgs& args) noexcept;
void gemm(const GemmArgs& args) noexcept;
void logits(const LogitArgs& args) noexcept;
void softmax(const SoftmaxArgs& args) noexcept;

// qk_q4_avx512 and so on, for every cold format. Strong symbols: templates stay inside their files.
#define MIXED_KV_DECLARE_FORMAT(name, bits)               \
    void qk_##name##_avx512(const QkArgs& args) noexcept; \
    void pv_##name##_avx512(const PvArgs& args) noexcept;
MIXED_KV_FOR_EACH_COLD_FORMAT(MIXED_KV_DECLARE_FORMAT)
#undef MIXED_KV_DECLARE_FORMAT

extern const KernelSet kKernelSet;

}  // namespace mixed_kv::kernels::avx512
