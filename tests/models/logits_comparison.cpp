// Pseudo-random prompts and comparisons of logits.
#include "llama_driver.h"
#include "random_model.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <stdexcept>

namespace mixed_kv::test {

namespace {

/// log(sum(exp(row)))
double log_sum_exp(const float* row, std::size_t n) {
    const double largest = *std::max_element(row, row + n);
    double sum = 0;
    for (std::size_t i = 0; i < n; i++) {
        sum += std::exp(row[i] - largest);
    }
    return largest + std::log(sum);
}

}  // namespace

std::vector<llama_token> random_tokens(std::size_t n, std::int32_t n_vocab, std::uint64_t seed) {
    std::vector<llama_token> tokens(n);
    std::uint64_t state = seed * 0x9e3779b97f4a7c15ull + 1;
    for (llama_token& token : tokens) {
        state = state * 6364136223846793005ull + 1442695040888963407ull;  // Knuth's MMIX generator
        token = kFirstPlainToken + static_cast<llama_token>((state >> 33) % (n_vocab - kFirstPlainToken));
    }
    if (n > 0) {
        tokens[0] = kBosToken;
    }
    return tokens;
}

Comparison compare(const Logits& expected, const Logits& actual) {
    if (expected.n_vocab != actual.n_vocab || expected.values.size() != actual.values.size() ||
        expected.values.empty()) {
        throw std::invalid_argument("nothing to compare, or logits of different shapes");
    }
    Comparison result;
    result.n_rows = expected.n_rows();
    const std::size_t n = expected.n_vocab;
    double total_difference = 0, total_square = 0;
    for (std::size_t r = 0; r < result.n_rows; r++) {
        const float* x = expected.row(r);
        const float* y = actual.row(r);
        double difference = 0, square = 0;
        for (std::size_t i = 0; i < n; i++) {
            if (!std::isfinite(x[i]) || !std::isfinite(y[i])) {
                result.n_not_finite++;
            }
            const double d = double{y[i]} - x[i];
            difference += d * d;
            square += double{x[i]} * x[i];
            result.max_abs = std::max(result.max_abs, std::abs(d));
        }
        total_difference += difference;
        total_square += square;
        if (!(difference / square <= result.worst_row_nmse)) {
            result.worst_row_nmse = difference / square;
            result.worst_row = r;
        }
        const double x_norm = log_sum_exp(x, n), y_norm = log_sum_exp(y, n);
        double kld = 0;
        for (std::size_t i = 0; i < n; i++) {
            kld += std::exp(x[i] - x_norm) * ((x[i] - x_norm) - (y[i] - y_norm));
        }
        result.mean_kld += kld / static_cast<double>(result.n_rows);
        result.max_kld = std::max(result.max_kld, kld);
        result.top1_equal += expected.top(r) == actual.top(r) ? 1 : 0;
    }
    result.nmse = total_difference / total_square;
    if (result.n_not_finite > 0) {
        const double infinity = std::numeric_limits<double>::infinity();
        result.nmse = result.worst_row_nmse = result.max_abs = result.mean_kld = result.max_kld = infinity;
    }
    return result;
}

std::string Comparison::text() const {
    char buffer[256];
    std::snprintf(buffer, sizeof buffer,
                  "NMSE %.2e (worst row %.2e at %zu), max |d| %.2e, KLD mean %.2e max %.2e, top-1 %zu/%zu%s",
                  nmse, worst_row_nmse, worst_row, max_abs, mean_kld, max_kld, top1_equal, n_rows,
                  n_not_finite > 0 ? ", NOT FINITE" : "");
    return buffer;
}

}  // namespace mixed_kv::test
