#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "mixed_kv/mask_view.h"

// Attention in double, written for clarity: what every kernel and every trace is measured against. Never
// linked into the plugin.
namespace mixed_kv::reference {

// Writes one row of one head as double: head_dim values.
using RowReader = std::function<void(int stream, std::int64_t row, int head, double* out)>;

// One attention op in the terms of GGML_OP_FLASH_ATTN_EXT. Query head h reads KV head h / (n_head /
// n_head_kv).
struct AttentionInputs {
    int n_stream = 1;
    std::int64_t n_q = 0;   // query rows per stream
    std::int64_t n_kv = 0;  // cells per stream
    int n_head = 0;
    int n_head_kv = 0;
    int head_dim_k = 0;
    int head_dim_v = 0;
    RowReader q;  // (stream, query, head)    -> [head_dim_k]
    RowReader k;  // (stream, cell, KV head)  -> [head_dim_k]
    RowReader v;  // (stream, cell, KV head)  -> [head_dim_v]; MLA: the first channels of k
    MaskView mask;
    double kq_scale = 1.0;
    double max_bias = 0.0;
    double logit_softcap = 0.0;
    const float* sinks = nullptr;  // [n_head] or null
};

// How large the terms of one output row were: what rounding errors are proportional to
// (tests/support/tolerance.h).
struct RowMagnitudes {
    double value = 0.0;        // largest |v| of a visible cell
    double output = 0.0;       // largest |o|
    double score_terms = 0.0;  // largest sum_d |q_d * k_d| * kq_scale of a visible cell
    double score_term = 0.0;   // largest |q_d * k_d| * kq_scale of any cell, visible or not
    double logit = 0.0;        // largest |logit| of a visible cell
    double p_norm = 0.0;       // sqrt(sum p^2): 1 when one cell takes all, 1 / sqrt(n) when n share alike
};

struct AttentionOutputs {
    std::vector<double> o;    // [n_stream][n_q][n_head][head_dim_v]; 0 where no cell is visible
    std::vector<double> lse;  // [n_stream][n_q][n_head], natural logarithm, sink included; -inf if empty
    std::vector<RowMagnitudes> magnitudes;  // [n_stream][n_q][n_head]
};

AttentionOutputs attention(const AttentionInputs& inputs);

// ALiBi slope of a head; 1 when max_bias is 0.
double alibi_slope(double max_bias, int n_head, int head);

}  // namespace mixed_kv::reference
