#pragma once

#include <cstddef>
#include <nlohmann/json_fwd.hpp>
#include <vector>

namespace mixed_kv::tools {

// log-softmax of one row of logits [n_vocab], in double.
void log_softmax(const float* logits, std::size_t n_vocab, std::vector<double>& log_p);

// How a cache's next-token distributions differ from the reference's, over scored positions.
class Divergence {
  public:
    // One position: log-probabilities of reference and candidate, and the token that follows in the text.
    void add(const std::vector<double>& reference, const std::vector<double>& candidate, int next_token);
    // The positions of another one, after these.
    void append(const Divergence& other);

    struct Summary {
        std::size_t n = 0;
        double kld_mean = 0, kld_median = 0, kld_p99 = 0, kld_p999 = 0, kld_max = 0;  // nats
        double top1 = 0;         // share of positions with the same most probable token
        double rms_delta_p = 0;  // of the probability of the text's next token
        double ppl = 0;          // perplexity of the candidate
        double ppl_reference = 0;
    };
    Summary summary() const;

    const std::vector<double>& kld() const { return kld_; }
    std::size_t same_top() const { return same_top_; }

    // All of it, for files that a run is taken up from.
    nlohmann::json to_json() const;
    static Divergence from_json(const nlohmann::json& json);  // throws nlohmann's exceptions

  private:
    std::vector<double> kld_;
    std::size_t same_top_ = 0;
    double squared_delta_p_ = 0, nll_ = 0, nll_reference_ = 0;
};

}  // namespace mixed_kv::tools
