#pragma once

#include <cstdint>
#include <vector>

#include "kqv-tensor-reader/recompute.h"

namespace mixed_kv::trace_tools {

// What one query of one head pays attention to: softmax weights, which add up to 1 with the sink's, or to 0
// for a query that sees nothing.
struct QueryWeights {
    std::vector<double> cells;  // [n_kv] of the query's stream
    double sink = 0;            // taken by a learned sink
};

QueryWeights attention_weights(const AttentionData& data, int64_t stream, int64_t token, int64_t head);

// The output that these weights give, [head_dim_v].
std::vector<double> weighted_values(const AttentionData& data, int64_t stream, int64_t head,
                                    const QueryWeights& weights);

}  // namespace mixed_kv::trace_tools
