#include "reference/attention_reference.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace mixed_kv::reference {

namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

std::vector<double> read_head(const RowReader& rows, int stream, std::int64_t n_rows, int head,
                              int head_dim) {
    std::vector<double> out(static_cast<std::size_t>(n_rows * head_dim));
    for (std::int64_t row = 0; row < n_rows; ++row) rows(stream, row, head, out.data() + row * head_dim);
    return out;
}

// One query row of one head against all cells. logits: room for n_kv.
void attend(const AttentionInputs& in, const double* q, const std::vector<double>& k,
            const std::vector<double>& v, const fp16_t* mask, double slope, const float* sink,
            std::vector<double>& logits, double* o, double& lse, RowMagnitudes& size) {
    double max = sink != nullptr ? double(*sink) : -kInfinity;
    for (std::int64_t cell = 0; cell < in.n_kv; ++cell) {
        double dot = 0.0, terms = 0.0;
        for (int d = 0; d < in.head_dim_k; ++d) {
            const double term = q[d] * k[std::size_t(cell * in.head_dim_k + d)] * in.kq_scale;
            dot += term;
            terms += std::fabs(term);
            size.score_term = std::max(size.score_term, std::fabs(term));
        }
        double& logit = logits[std::size_t(cell)];
        logit = in.logit_softcap != 0.0 ? in.logit_softcap * std::tanh(dot / in.logit_softcap) : dot;
        if (mask != nullptr) {
            if (mask[cell] == kMaskedOut) {
                logit = -kInfinity;  // whatever the hidden cell holds
                continue;
            }
            logit += slope * double(fp16_to_fp32(mask[cell]));
        }
        size.score_terms = std::max(size.score_terms, terms);
        size.logit = std::max(size.logit, std::fabs(logit));
        max = std::max(max, logit);
    }

    std::fill_n(o, in.head_dim_v, 0.0);
    lse = -kInfinity;
    if (max == -kInfinity) return;  // nothing visible

    double sum = sink != nullptr ? std::exp(double(*sink) - max) : 0.0;
    double squares = 0.0;
    for (std::int64_t cell = 0; cell < in.n_kv; ++cell) {
        const double logit = logits[std::size_t(cell)];
        if (logit == -kInfinity) continue;
        const double p = std::exp(logit - max);
        sum += p;
        squares += p * p;
        for (int d = 0; d < in.head_dim_v; ++d) {
            const double value = v[std::size_t(cell * in.head_dim_v + d)];
            o[d] += p * value;
            size.value = std::max(size.value, std::fabs(value));
        }
    }
    for (int d = 0; d < in.head_dim_v; ++d) {
        o[d] /= sum;
        size.output = std::max(size.output, std::fabs(o[d]));
    }
    size.p_norm = std::sqrt(squares) / sum;
    lse = max + std::log(sum);
}

}  // namespace

AttentionOutputs attention(const AttentionInputs& in) {
    const auto n_rows = std::size_t(in.n_stream) * std::size_t(in.n_q) * std::size_t(in.n_head);
    AttentionOutputs out;
    out.o.resize(n_rows * std::size_t(in.head_dim_v));
    out.lse.resize(n_rows);
    out.magnitudes.resize(n_rows);

    const int n_gqa = in.n_head / in.n_head_kv;
    std::vector<double> q(std::size_t(in.head_dim_k)), logits(std::size_t(in.n_kv));
    for (int stream = 0; stream < in.n_stream; ++stream) {
        for (int head_kv = 0; head_kv < in.n_head_kv; ++head_kv) {
            const std::vector<double> k = read_head(in.k, stream, in.n_kv, head_kv, in.head_dim_k);
            const std::vector<double> v = read_head(in.v, stream, in.n_kv, head_kv, in.head_dim_v);
            for (std::int64_t query = 0; query < in.n_q; ++query) {
                for (int head = head_kv * n_gqa; head < (head_kv + 1) * n_gqa; ++head) {
                    const std::size_t row = (std::size_t(stream) * std::size_t(in.n_q) + std::size_t(query)) *
                                                std::size_t(in.n_head) +
                                            std::size_t(head);
                    in.q(stream, query, head, q.data());
                    attend(in, q.data(), k, v, in.mask.row(stream, head, query),
                           alibi_slope(in.max_bias, in.n_head, head),
                           in.sinks != nullptr ? in.sinks + head : nullptr, logits,
                           out.o.data() + row * std::size_t(in.head_dim_v), out.lse[row],
                           out.magnitudes[row]);
                }
            }
        }
    }
    return out;
}

// Press et al. 2022: a geometric sequence that starts at 2^(-max_bias / n) for n heads, n a power of two;
// other counts take the sequence of the power below and fill up with every other element of twice that
// power's.
double alibi_slope(double max_bias, int n_head, int head) {
    if (max_bias <= 0.0) return 1.0;
    int power = 1;
    while (2 * power <= n_head) power *= 2;
    if (head < power) return std::exp2(-max_bias * (head + 1) / power);
    return std::exp2(-max_bias / 2.0 * (2 * (head - power) + 1) / power);
}

}  // namespace mixed_kv::reference
