#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kqv-tensor-reader/trace_values.h"
#include "reference/attention_reference.h"

namespace mixed_kv::trace_tools {

// The inputs of a recorded op as dense arrays. Cells that no query sees are zero in k and v, whatever they
// held, so that what lies in unused memory cannot turn a sum into NaN.
struct AttentionData {
    int64_t n_tokens = 0, n_head = 0, n_head_kv = 0, n_kv = 0, n_stream = 0, head_dim_k = 0, head_dim_v = 0;
    double kq_scale = 1, max_bias = 0, logit_softcap = 0;
    std::vector<float> q;     // [n_stream][n_tokens][n_head][head_dim_k]
    std::vector<double> k;    // [n_stream][n_kv][n_head_kv][head_dim_k]
    std::vector<double> v;    // [n_stream][n_kv][n_head_kv][head_dim_v]
    std::vector<float> mask;  // [mask_streams][mask_heads][mask_rows][n_kv], empty: none
    int64_t mask_streams = 1, mask_heads = 1, mask_rows = 0;
    std::vector<float> sinks;       // [n_head], empty: none
    int64_t n_hot = 0, n_cold = 0;  // cells of K, see DensePart

    const float* mask_row(int64_t stream, int64_t head, int64_t token) const {
        return mask.data() +
               (((stream % mask_streams) * mask_heads + head % mask_heads) * mask_rows + token) * n_kv;
    }
};

// Throws Error for a record without sources, and as dense_part().
AttentionData attention_data(const trace::TraceRecord& record);

// Attention in double: src/reference. Throws Error for an f32 mask with values that f16 does not have.
reference::AttentionOutputs attention_in_double(const AttentionData& data);

// Attention in float32 by libtorch, [n_stream][n_tokens][n_head][head_dim_v]. Only where has_torch(). Any of
// these loads libtorch when it is called first: ask only before something is computed.
std::vector<float> attention_in_torch(const AttentionData& data);
bool has_torch();
// "libtorch 1.13.0", or why there is none.
std::string torch_text();

}  // namespace mixed_kv::trace_tools
