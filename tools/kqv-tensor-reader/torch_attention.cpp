// Attention by libtorch: the independent reference, in float32 and with PyTorch's own matmul and softmax.
// Shares nothing with the double reference but the dense inputs. The source of libmixed-kv-torch.so.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/InferenceMode.h>
#include <torch/version.h>

#include <algorithm>
#include <cmath>

#include "kqv-tensor-reader/torch_module.h"

namespace mixed_kv::trace_tools {

namespace {

// ALiBi slopes from their definition (Press et al. 2022), [n_head]; 1 without ALiBi.
at::Tensor alibi_slopes(double max_bias, int64_t n_head) {
    at::Tensor slopes = at::ones({n_head}, at::kDouble);
    if (max_bias > 0) {
        const auto power = int64_t(std::exp2(std::floor(std::log2(double(n_head)))));
        const double even = std::exp2(-max_bias / double(power));
        const double odd = std::exp2(-max_bias / (2.0 * double(power)));
        for (int64_t head = 0; head < n_head; ++head) {
            slopes[head] = head < power ? std::pow(even, double(head + 1))
                                        : std::pow(odd, double(2 * (head - power) + 1));
        }
    }
    return slopes.to(at::kFloat);
}

at::Tensor wrap(const std::vector<float>& values, at::IntArrayRef shape) {
    return at::from_blob(const_cast<float*>(values.data()), shape, at::kFloat);
}

at::Tensor wrap_as_float(const std::vector<double>& values, at::IntArrayRef shape) {
    return at::from_blob(const_cast<double*>(values.data()), shape, at::kDouble).to(at::kFloat);
}

// Query rows at once, so that the scores of one KV head take no more than about 64 MiB.
int64_t rows_at_once(const AttentionData& data) {
    constexpr int64_t kScores = 16 << 20;
    const int64_t per_row = std::max<int64_t>(1, data.n_kv * (data.n_head / data.n_head_kv));
    return std::clamp<int64_t>(kScores / per_row, 1, data.n_tokens);
}

std::vector<float> attention(const AttentionData& d) {
    const c10::InferenceMode inference;
    static const bool one_thread = (at::set_num_threads(1), true);  // the matrices are small
    (void)one_thread;
    const int64_t n_gqa = d.n_head / d.n_head_kv, step = rows_at_once(d);
    const at::Tensor q = wrap(d.q, {d.n_stream, d.n_tokens, d.n_head, d.head_dim_k});
    const at::Tensor k = wrap_as_float(d.k, {d.n_stream, d.n_kv, d.n_head_kv, d.head_dim_k});
    const at::Tensor v = wrap_as_float(d.v, {d.n_stream, d.n_kv, d.n_head_kv, d.head_dim_v});
    const at::Tensor slopes = alibi_slopes(d.max_bias, d.n_head).view({d.n_head, 1, 1});
    const at::Tensor mask =
        d.mask.empty() ? at::Tensor() : wrap(d.mask, {d.mask_streams, d.mask_heads, d.mask_rows, d.n_kv});
    const at::Tensor sinks = d.sinks.empty() ? at::Tensor() : wrap(d.sinks, {d.n_head, 1, 1});
    std::vector<float> result(size_t(d.n_stream * d.n_tokens * d.n_head * d.head_dim_v));
    at::Tensor out =
        at::from_blob(result.data(), {d.n_stream, d.n_tokens, d.n_head, d.head_dim_v}, at::kFloat);

    for (int64_t stream = 0; stream < d.n_stream; ++stream) {
        for (int64_t kv = 0; kv < d.n_head_kv; ++kv) {
            const at::Tensor keys = k[stream].select(1, kv).t();  // [head_dim_k][n_kv]
            const at::Tensor values = v[stream].select(1, kv);    // [n_kv][head_dim_v]
            for (int64_t first = 0; first < d.n_tokens; first += step) {
                const int64_t n = std::min(step, d.n_tokens - first);
                const at::Tensor queries = q[stream]
                                               .slice(0, first, first + n)
                                               .slice(1, kv * n_gqa, (kv + 1) * n_gqa)
                                               .permute({1, 0, 2});  // [n_gqa][n][head_dim_k]
                at::Tensor scores = at::matmul(queries, keys) * d.kq_scale;
                if (d.logit_softcap != 0) {
                    scores = at::tanh(scores / d.logit_softcap) * d.logit_softcap;
                }
                if (mask.defined()) {
                    const at::Tensor of_stream = mask[stream % d.mask_streams].slice(1, first, first + n);
                    const at::Tensor of_heads =  // head h reads mask head h modulo their number
                        of_stream.index_select(
                            0, at::arange(kv * n_gqa, (kv + 1) * n_gqa, at::kLong).remainder(d.mask_heads));
                    scores = scores + of_heads * slopes.slice(0, kv * n_gqa, (kv + 1) * n_gqa);
                }
                if (sinks.defined()) {
                    scores = at::cat(
                        {scores, sinks.slice(0, kv * n_gqa, (kv + 1) * n_gqa).expand({n_gqa, n, 1})}, 2);
                }
                at::Tensor weights = at::softmax(scores, 2).slice(2, 0, d.n_kv);
                // A query that sees nothing gets 0.
                weights = at::where(at::isneginf(scores).all(2, true), at::zeros_like(weights), weights);
                out[stream]
                    .slice(0, first, first + n)
                    .slice(1, kv * n_gqa, (kv + 1) * n_gqa)
                    .copy_(at::matmul(weights, values).permute({1, 0, 2}));
            }
        }
    }
    return result;
}

}  // namespace

}  // namespace mixed_kv::trace_tools

extern "C" __attribute__((visibility("default"))) const mixed_kv::trace_tools::TorchModule*
mixed_kv_torch_module() {
    using namespace mixed_kv::trace_tools;
    static const TorchModule module{kTorchModuleVersion, "libtorch " TORCH_VERSION, attention};
    return &module;
}
