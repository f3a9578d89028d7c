#include "mixed-kv-eval/divergence.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

namespace mixed_kv::tools {

void log_softmax(const float* logits, std::size_t n_vocab, std::vector<double>& log_p) {
    log_p.resize(n_vocab);
    const double max = *std::max_element(logits, logits + n_vocab);
    double sum = 0;
    for (std::size_t i = 0; i < n_vocab; ++i) sum += std::exp(logits[i] - max);
    const double log_sum = max + std::log(sum);
    for (std::size_t i = 0; i < n_vocab; ++i) log_p[i] = logits[i] - log_sum;
}

void Divergence::add(const std::vector<double>& reference, const std::vector<double>& candidate,
                     int next_token) {
    double kld = 0;
    for (std::size_t i = 0; i < reference.size(); ++i)
        kld += std::exp(reference[i]) * (reference[i] - candidate[i]);
    // A NaN in the candidate must not look like agreement.
    kld_.push_back(std::isnan(kld) ? std::numeric_limits<double>::infinity() : std::max(kld, 0.0));
    const auto top = [](const std::vector<double>& p) {
        return std::max_element(p.begin(), p.end()) - p.begin();
    };
    same_top_ += top(reference) == top(candidate);
    const auto next = std::size_t(next_token);
    const double delta = std::exp(candidate[next]) - std::exp(reference[next]);
    squared_delta_p_ += delta * delta;
    nll_ -= candidate[next];
    nll_reference_ -= reference[next];
}

void Divergence::append(const Divergence& other) {
    kld_.insert(kld_.end(), other.kld_.begin(), other.kld_.end());
    same_top_ += other.same_top_;
    squared_delta_p_ += other.squared_delta_p_;
    nll_ += other.nll_;
    nll_reference_ += other.nll_reference_;
}

nlohmann::json Divergence::to_json() const {
    // JSON has no infinity: null stands for it.
    return {{"kld", kld_},
            {"same_top", same_top_},
            {"squared_delta_p", squared_delta_p_},
            {"nll", nll_},
            {"nll_reference", nll_reference_}};
}

Divergence Divergence::from_json(const nlohmann::json& json) {
    Divergence d;
    for (const nlohmann::json& kld : json.at("kld")) {
        d.kld_.push_back(kld.is_null() ? std::numeric_limits<double>::infinity() : kld.get<double>());
    }
    d.same_top_ = json.at("same_top").get<std::size_t>();
    d.squared_delta_p_ = json.at("squared_delta_p").get<double>();
    d.nll_ = json.at("nll").get<double>();
    d.nll_reference_ = json.at("nll_reference").get<double>();
    return d;
}

Divergence::Summary Divergence::summary() const {
    Summary s;
    s.n = kld_.size();
    if (s.n == 0) return s;
    std::vector<double> sorted = kld_;
    std::sort(sorted.begin(), sorted.end());
    const auto quantile = [&](double q) { return sorted[std::min(s.n - 1, std::size_t(q * double(s.n)))]; };
    for (double k : sorted) s.kld_mean += k / double(s.n);
    s.kld_median = quantile(0.5);
    s.kld_p99 = quantile(0.99);
    s.kld_p999 = quantile(0.999);
    s.kld_max = sorted.back();
    s.top1 = double(same_top_) / double(s.n);
    s.rms_delta_p = std::sqrt(squared_delta_p_ / double(s.n));
    s.ppl = std::exp(nll_ / double(s.n));
    s.ppl_reference = std::exp(nll_reference_ / double(s.n));
    return s;
}

}  // namespace mixed_kv::tools
