#include "formats/format_list.h"
#include "kernels/avx2/avx2.h"
#include "kernels/avx512/avx512.h"
#include "kernels/avx512/fold.h"
#include "kernels/cpu_features.h"
#include "kernels/tiered_keys.h"

namespace mixed_kv::kernels::avx512 {
namespace {

#define MIXED_KV_FORMAT_ROW(name, bits) \
    {qk_##name##_avx512,                \
     pv_##name##_avx512,                \
     avx2::decode_key_##name##_avx2,    \
     avx2::decode_value_##name##_avx2,  \
     avx2::encode_key_##name##_avx2,    \
     avx2::encode_value_##name##_avx2},
const FormatKernels kFormats[] = {MIXED_KV_FOR_EACH_COLD_FORMAT(MIXED_KV_FORMAT_ROW)};

}  // namespace

// Permuted rows of tiered keys, and a tile of folded rows.
std::size_t scratch_bytes(int head_dim) noexcept {
    const int length = head_dim > kPage ? padded(head_dim) : kPage;
    return permuted_bytes(head_dim, kMaxDecodeRows) + fold_bytes(length);
}

const KernelSet kKernelSet = {
#if defined(MIXED_KV_AVX512_EMULATED)
    .name = "avx512_emulated",
    .supported = cpu_has_avx2,
#else
    .name = "avx512",
    .supported = cpu_has_avx512,
#endif
    .max_rows = kMaxDecodeRows,
    .fp16_rows = 128,
    .product_error = 0.0f,
    .scratch_bytes = scratch_bytes,
    .qk_f16 = qk_f16,
    .pv_f16 = pv_f16,
    .decode_f16 = avx2::decode_f16,
    .formats = kFormats,
    .gemm = gemm,
    .logits = logits,
    .softmax = softmax,
    .scale = avx2::scale,
    .hadamard = avx2::hadamard,
    .fp32_to_fp16 = avx2::fp32_to_fp16,
    .fp16_to_fp32 = avx2::fp16_to_fp32,
    .softmax_pages = kMaxSoftmaxPages,
};

}  // namespace mixed_kv::kernels::avx512
