#include "kernels/cpu_features.h"
#include "kernels/scalar/scalar.h"

namespace mixed_kv::kernels::scalar {

const KernelSet kKernelSet = {
    .name = "scalar",
    .supported = cpu_has_scalar,
    .max_rows = kMaxDecodeRows,
    .fp16_rows = kMaxDecodeRows,
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

}  // namespace mixed_kv::kernels::scalar
