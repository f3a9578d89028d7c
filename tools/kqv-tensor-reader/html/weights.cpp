#include "kqv-tensor-reader/html/weights.h"

#include <algorithm>
#include <cmath>

namespace mixed_kv::trace_tools {

QueryWeights attention_weights(const AttentionData& data, int64_t stream, int64_t token, int64_t head) {
    const int64_t kv_head = head / (data.n_head / data.n_head_kv);
    const float* q =
        data.q.data() + ((stream * data.n_tokens + token) * data.n_head + head) * data.head_dim_k;
    const float* mask = data.mask.empty() ? nullptr : data.mask_row(stream, head, token);
    const double slope = reference::alibi_slope(data.max_bias, int(data.n_head), int(head));
    QueryWeights weights;
    weights.cells.assign(size_t(data.n_kv), -INFINITY);
    for (int64_t cell = 0; cell < data.n_kv; ++cell) {
        if (mask != nullptr && mask[cell] == -INFINITY) continue;
        const double* k =
            data.k.data() + ((stream * data.n_kv + cell) * data.n_head_kv + kv_head) * data.head_dim_k;
        double x = 0;
        for (int64_t d = 0; d < data.head_dim_k; ++d) x += double(q[d]) * k[d];
        x *= data.kq_scale;
        if (data.logit_softcap != 0) x = data.logit_softcap * std::tanh(x / data.logit_softcap);
        if (mask != nullptr) x += slope * double(mask[cell]);
        weights.cells[size_t(cell)] = x;
    }
    const double sink = data.sinks.empty() ? -INFINITY : double(data.sinks[size_t(head)]);
    double largest = sink;
    for (const double x : weights.cells) largest = std::max(largest, x);
    // A query that sees nothing gets no weights.
    if (largest == -INFINITY) largest = 0;
    weights.sink = std::exp(sink - largest);
    double total = weights.sink;
    for (double& x : weights.cells) {
        x = std::exp(x - largest);
        total += x;
    }
    if (total > 0) {
        weights.sink /= total;
        for (double& x : weights.cells) x /= total;
    }
    return weights;
}

std::vector<double> weighted_values(const AttentionData& data, int64_t stream, int64_t head,
                                    const QueryWeights& weights) {
    const int64_t kv_head = head / (data.n_head / data.n_head_kv);
    std::vector<double> out(size_t(data.head_dim_v), 0.0);
    for (int64_t cell = 0; cell < data.n_kv; ++cell) {
        const double weight = weights.cells[size_t(cell)];
        if (weight == 0) continue;  // also keeps what lies in cells that nobody sees out of the sum
        const double* v =
            data.v.data() + ((stream * data.n_kv + cell) * data.n_head_kv + kv_head) * data.head_dim_v;
        for (size_t d = 0; d < out.size(); ++d) out[d] += weight * v[d];
    }
    return out;
}

}  // namespace mixed_kv::trace_tools
