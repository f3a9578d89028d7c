#include "kernels/cpu_features.h"
#include "kernels/dotprod/dotprod.h"
#include "kernels/neon/neon.h"

namespace mixed_kv::kernels::dotprod {
namespace {

#define MIXED_KV_FORMAT_ROW(name, bits) \
    {qk_##name##_dotprod,               \
     pv_##name##_dotprod,               \
     neon::decode_key_##name##_neon,    \
     neon::decode_value_##name##_neon,  \
     neon::encode_key_##name##_neon,    \
     neon::encode_value_##name##_neon},
const FormatKernels kFormats[] = {MIXED_KV_FOR_EACH_COLD_FORMAT(MIXED_KV_FORMAT_ROW)};

}  // namespace

const KernelSet kKernelSet = {
    .name = "dotprod",
    .supported = cpu_has_dotprod,
    .max_rows = 128,
    .fp16_rows = 128,
    .product_error = 0.0f,
    .scratch_bytes = neon::scratch_bytes,
    .qk_f16 = neon::qk_f16,
    .pv_f16 = neon::pv_f16,
    .decode_f16 = neon::decode_f16,
    .formats = kFormats,
    .gemm = neon::gemm,
    .logits = neon::logits,
    .softmax = neon::softmax,
    .scale = neon::scale,
    .hadamard = neon::hadamard,
    .fp32_to_fp16 = neon::fp32_to_fp16,
    .fp16_to_fp32 = neon::fp16_to_fp32,
    .softmax_pages = kMaxSoftmaxPages,
};

}  // namespace mixed_kv::kernels::dotprod
