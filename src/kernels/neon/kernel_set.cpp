#include "formats/format_list.h"
#include "kernels/cpu_features.h"
#include "kernels/neon/neon.h"
#include "kernels/shared/fold.h"
#include "kernels/tiered_keys.h"

namespace mixed_kv::kernels::neon {

std::size_t scratch_bytes(int head_dim) noexcept {
    return permuted_bytes(head_dim, kMaxDecodeRows) + shared::scratch_bytes(head_dim);
}

#define MIXED_KV_FORMAT_ROW(name, bits)                                              \
    {qk_##name##_neon,           pv_##name##_neon,         decode_key_##name##_neon, \
     decode_value_##name##_neon, encode_key_##name##_neon, encode_value_##name##_neon},
const FormatKernels kFormats[] = {MIXED_KV_FOR_EACH_COLD_FORMAT(MIXED_KV_FORMAT_ROW)};

const KernelSet kKernelSet = {
    .name = "neon",
    .supported = cpu_has_neon,
    .max_rows = 128,
    .fp16_rows = 128,
    .product_error = 0.0f,
    .scratch_bytes = scratch_bytes,
    .qk_f16 = qk_f16,
    .pv_f16 = pv_f16,
    .decode_f16 = decode_f16,
    .formats = kFormats,
    .gemm = gemm,
    .logits = logits,
    .softmax = softmax,
    .scale = scale,
    .hadamard = hadamard,
    .fp32_to_fp16 = fp32_to_fp16,
    .fp16_to_fp32 = fp16_to_fp32,
    .softmax_pages = kMaxSoftmaxPages,
};

}  // namespace mixed_kv::kernels::neon
