#include "formats/format_list.h"
#include "kernels/amx/amx.h"
#include "kernels/amx/integers.h"
#include "kernels/avx2/avx2.h"
#include "kernels/avx512/avx512.h"
#include "kernels/cpu_features.h"
#include "kernels/tiered_keys.h"

namespace mixed_kv::kernels::amx {
namespace {

#define MIXED_KV_FORMAT_ROW(name, bits) \
    {qk_##name##_amx,                   \
     pv_##name##_amx,                   \
     avx2::decode_key_##name##_avx2,    \
     avx2::decode_value_##name##_avx2,  \
     avx2::encode_key_##name##_avx2,    \
     avx2::encode_value_##name##_avx2},
const FormatKernels kFormats[] = {MIXED_KV_FOR_EACH_COLD_FORMAT(MIXED_KV_FORMAT_ROW)};

constexpr std::size_t larger(std::size_t a, std::size_t b) { return a > b ? a : b; }

}  // namespace

std::size_t scratch_bytes(int head_dim) noexcept {
    const auto dim = static_cast<std::size_t>(whole_steps(head_dim));
    const std::size_t integers =
        larger(integers_bytes(head_dim, dim * kPage), integers_bytes(kPage, dim * kPage));
    // Tiered keys: permuted rows before what one tier takes.
    const std::size_t bytes =
        larger(larger(permuted_bytes(head_dim, kMaxRows) + integers, fp16_scratch_bytes(head_dim)),
               avx512::scratch_bytes(head_dim));
    return (bytes + 63) / 64 * 64;
}

const KernelSet kKernelSet = {
#if defined(MIXED_KV_AVX512_EMULATED)
    .name = "amx_emulated",
    .supported = cpu_has_avx2,
#else
    .name = "amx",
    .supported = cpu_has_amx,
#endif
    .max_rows = kMaxRows,
    .fp16_rows = kMaxRows,
    .product_error = 3 * 0x1p-16f,
    .scratch_bytes = scratch_bytes,
    .qk_f16 = qk_f16,
    .pv_f16 = pv_f16,
    .decode_f16 = avx2::decode_f16,
    .formats = kFormats,
    .gemm = gemm,
    .logits = avx512::logits,
    .softmax = avx512::softmax,
    .scale = avx2::scale,
    .hadamard = avx2::hadamard,
    .fp32_to_fp16 = avx2::fp32_to_fp16,
    .fp16_to_fp32 = avx2::fp16_to_fp32,
    .softmax_pages = kMaxSoftmaxPages,
};

}  // namespace mixed_kv::kernels::amx
