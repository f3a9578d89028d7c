#include "op_check.h"

#include <algorithm>
#include <cmath>

#include "kernels/contract.h"
#include "mixed_kv/isa.h"

namespace mixed_kv::test {

namespace {

using Shape3 = std::array<std::int64_t, 3>;

template <typename T>
std::size_t byte_size(const std::vector<T>& v) {
    return v.size() * sizeof(T);
}

// Every other case has its rows stored head by head, the others token by token as llama.cpp's cache has them.
ggml_tensor* add_rows(OpGraph& graph, bool by_head, ggml_type type, std::int64_t dim, std::int64_t n_rows,
                      std::int64_t n_head, const std::byte* data, std::size_t bytes,
                      std::vector<std::byte>& keep) {
    if (!by_head || n_rows == 0) return graph.add_permuted(type, {dim, n_rows, n_head}, data, bytes);
    keep.resize(bytes);
    const std::size_t row = bytes / std::size_t(n_rows * n_head);
    for (std::int64_t h = 0; h < n_head; ++h) {
        for (std::int64_t i = 0; i < n_rows; ++i) {
            std::copy_n(data + std::size_t(i * n_head + h) * row, row,
                        keep.data() + std::size_t(h * n_rows + i) * row);
        }
    }
    return graph.add(type, {dim, n_rows, n_head}, keep.data(), bytes);
}

struct Keep {
    std::vector<std::byte> hot, cold;
};

void add_side(OpGraph& graph, const OpSide& side, std::int64_t n_head_kv, bool by_head, Keep& keep,
              ggml_tensor*& hot, ggml_tensor*& cold) {
    hot = add_rows(graph, by_head, GGML_TYPE_F16, side.head_dim, side.n_hot, n_head_kv,
                   reinterpret_cast<const std::byte*>(side.hot.data()), byte_size(side.hot), keep.hot);
    cold = side.cold_type == GGML_TYPE_I8
               ? graph.add(GGML_TYPE_I8, Shape3{side.cold_ne0, n_head_kv, side.n_cold}, side.cold.data(),
                           side.cold.size())
               : add_rows(graph, by_head, side.cold_type, side.head_dim, side.n_cold, n_head_kv,
                          side.cold.data(), side.cold.size(), keep.cold);
}

}  // namespace

OpAnswers answers(const OpData& data) {
    OpAnswers a;
    a.exact = trace_tools::attention_in_double(data.dense);
    if (trace_tools::has_torch()) {
        const std::vector<float> torch = trace_tools::attention_in_torch(data.dense);
        a.torch.assign(torch.begin(), torch.end());
    }
    return a;
}

std::vector<float> run_op(const OpCase& c, const OpData& data, const std::string& isa, int n_threads,
                          int times) {
    const auto& d = data.dense;
    OpGraph graph;
    ggml_op::FlashDecodeInputs in;
    const bool by_head = c.seed % 2 == 0;
    Keep keep_k, keep_v;
    std::vector<std::byte> keep_q;
    in.q = add_rows(graph, by_head, GGML_TYPE_F32, c.head_dim, c.n_q, d.n_head,
                    reinterpret_cast<const std::byte*>(d.q.data()), byte_size(d.q), keep_q);
    add_side(graph, data.k, c.n_head_kv, by_head, keep_k, in.k, in.k_quant);
    add_side(graph, data.v, c.n_head_kv, by_head, keep_v, in.v, in.v_quant);
    in.mask = graph.add(GGML_TYPE_F16, {data.mask.empty() ? 0 : c.n_kv, c.n_q, data.n_mask_heads},
                        data.mask.data(), byte_size(data.mask));
    in.sinks =
        graph.add(GGML_TYPE_F32, {std::int64_t(d.sinks.size()), 1, 1}, d.sinks.data(), byte_size(d.sinks));

    ggml_op::FlashDecodeParams params;
    params.kq_scale = float(d.kq_scale);
    params.max_bias = float(d.max_bias);
    params.logit_softcap = float(d.logit_softcap);
    params.k_format = c.k_format;
    params.v_format = c.v_format;
    params.n_kv = c.n_kv;
    params.k_cells = data.k.explicit_cells ? &data.k.cells : nullptr;
    params.v_cells = data.v.explicit_cells ? &data.v.cells : nullptr;
    params.head_dim_v = c.head_dim;
    params.isa = isa;
    return graph.compute(in, params, n_threads, times);
}

OpFigures check_op(const OpData& data, const OpAnswers& a, const std::string& isa,
                   const std::vector<float>& out) {
    OpFigures f;
    ErrorModel ours = data.model;
    ours.product_error = double(kernel_set(isa).product_error);
    ErrorModel plain = data.model;  // of libtorch's own rounding: float, no integers
    plain.integer_scores = plain.integer_values = plain.rotated_values = false;
    std::vector<double> exact, torch;
    for (const reference::RowMagnitudes& row : a.exact.magnitudes) {
        exact.push_back(row_tolerance(ours, row));
        torch.push_back(exact.back() + 2.0 * row_tolerance(plain, row));
    }
    const auto dim = std::size_t(data.dense.head_dim_v);
    const RowErrors by_exact = compare_rows(out, a.exact.o, exact, dim);
    f.exact_ratio = by_exact.worst_ratio;
    for (std::size_t i = 0; i < std::min(out.size(), a.exact.o.size()); ++i) {
        const double error = std::fabs(double(out[i]) - a.exact.o[i]);
        if (!(error <= f.max_error)) f.max_error = error;
    }
    if (!by_exact.ok()) f.problem = "double reference: " + by_exact.message();
    if (!a.torch.empty()) {
        const RowErrors by_torch = compare_rows(out, a.torch, torch, dim);
        f.torch_ratio = by_torch.worst_ratio;
        if (!by_torch.ok() && f.problem.empty()) f.problem = "libtorch: " + by_torch.message();
    }
    return f;
}

}  // namespace mixed_kv::test
