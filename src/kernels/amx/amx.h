#pragma once

#include "formats/format_list.h"
#include "kernels/contract.h"

// Kernels with AMX tiles for blocks of many query rows, on top of the AVX-512 set: that set's functions are
// used for fewer rows and for everything that is no product of a block with a page.
namespace mixed_kv::kernels::amx {

// From this many rows on a call's tiles outrun the AVX-512 kernels by the estimates of
// docs/performance-amx.md.
inline constexpr int kMinRows = 9;
// Rows per call: unpacking a page is shared by them.
inline constexpr int kMaxRows = 128;

std::size_t scratch_bytes(int head_dim) noexcept;
std::size_t fp16_scratch_bytes(int head_dim) noexcept;  // of qk_f16 and pv_f16
void qk_f16(const QkArgs& args) noexcept;
void pv_f16(const PvArgs& args) noexcept;
void gemm(const GemmArgs& args) noexcept;

#define MIXED_KV_DECLARE_FORMAT(name, bits)            \
    void qk_##name##_amx(const QkArgs& args) noexcept; \
    void pv_##name##_amx(const PvArgs& args) noexcept;
MIXED_KV_FOR_EACH_COLD_FORMAT(MIXED_KV_DECLARE_FORMAT)
#undef MIXED_KV_DECLARE_FORMAT

extern const KernelSet kKernelSet;

}  // namespace mixed_kv::kernels::amx
