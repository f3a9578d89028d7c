#include "formats/format_list.h"
#include "kernels/avx2/avx2.h"
#include "kernels/avxvnni/avxvnni.h"
#include "kernels/cpu_features.h"

namespace mixed_kv::kernels::avxvnni {
namespace {

#define MIXED_KV_FORMAT_ROW(name, bits) \
    {qk_##name##_avxvnni,               \
     pv_##name##_avxvnni,               \
     avx2::decode_key_##name##_avx2,    \
     avx2::decode_value_##name##_avx2,  \
     avx2::encode_key_##name##_avx2,    \
     avx2::encode_value_##name##_avx2},
const FormatKernels kFormats[] = {MIXED_KV_FOR_EACH_COLD_FORMAT(MIXED_KV_FORMAT_ROW)};

}  // namespace

const KernelSet kKernelSet = {
    .name = "avxvnni",
    .supported = cpu_has_avxvnni,
    .max_rows = 128,
    .fp16_rows = 128,
    .product_error = 0.0f,
    .scratch_bytes = avx2::scratch_bytes,
    .qk_f16 = avx2::qk_f16,
    .pv_f16 = avx2::pv_f16,
    .decode_f16 = avx2::decode_f16,
    .formats = kFormats,
    .gemm = avx2::gemm,
    .logits = avx2::logits,
    .softmax = avx2::softmax,
    .scale = avx2::scale,
    .hadamard = avx2::hadamard,
    .fp32_to_fp16 = avx2::fp32_to_fp16,
    .fp16_to_fp32 = avx2::fp16_to_fp32,
    .softmax_pages = kMaxSoftmaxPages,
};

}  // namespace mixed_kv::kernels::avxvnni
