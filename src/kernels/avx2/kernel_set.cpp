#include "formats/format_list.h"
#include "kernels/avx2/avx2.h"
#include "kernels/cpu_features.h"

namespace mixed_kv::kernels::avx2 {
#define MIXED_KV_FORMAT_ROW(name, bits)                                              \
    {qk_##name##_avx2,           pv_##name##_avx2,         decode_key_##name##_avx2, \
     decode_value_##name##_avx2, encode_key_##name##_avx2, encode_value_##name##_avx2},
const FormatKernels kFormats[] = {MIXED_KV_FOR_EACH_COLD_FORMAT(MIXED_KV_FORMAT_ROW)};

const KernelSet kKernelSet = {
    .name = "avx2",
    .supported = cpu_has_avx2,
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

}  // namespace mixed_kv::kernels::avx2
