#include "mixed-kv-eval/intervals.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <random>
#include <utility>

namespace mixed_kv::tools {

namespace {

// How often each context was drawn.
using Draw = std::vector<std::uint32_t>;

std::vector<Draw> draws(std::size_t n_contexts) {
    std::mt19937 random(20261129);
    std::vector<Draw> result(kDraws, Draw(n_contexts));
    for (Draw& draw : result) {
        // A remainder and no distribution: those differ between standard libraries.
        for (std::size_t i = 0; i < n_contexts; ++i) ++draw[random() % n_contexts];
    }
    return result;
}

// One configuration's contexts, ready to be drawn from.
class Sample {
  public:
    explicit Sample(const std::vector<Divergence>& contexts) {
        for (std::size_t c = 0; c < contexts.size(); ++c) {
            const Divergence& context = contexts[c];
            double sum = 0;
            for (const double kld : context.kld()) {
                sum += kld;
                largest_first_.push_back({kld, c});
            }
            sums_.push_back(sum);
            same_top_.push_back(double(context.same_top()));
            n_.push_back(context.kld().size());
        }
        std::sort(largest_first_.begin(), largest_first_.end(), std::greater<>());
    }

    struct Figures {
        double mean = 0, p999 = 0, top1 = 0;
    };
    Figures of(const Draw& draw) const {
        double n = 0, sum = 0, same = 0;
        for (std::size_t c = 0; c < draw.size(); ++c) {
            n += double(draw[c]) * double(n_[c]);
            sum += draw[c] * sums_[c];
            same += draw[c] * same_top_[c];
        }
        return {sum / n, quantile_999(draw, std::size_t(n)), same / n};
    }

  private:
    // As Divergence::Summary has it, of the positions drawn.
    double quantile_999(const Draw& draw, std::size_t n) const {
        const std::size_t above = n - 1 - std::min(n - 1, std::size_t(0.999 * double(n)));
        std::size_t passed = 0;
        for (const auto& [kld, context] : largest_first_) {
            passed += draw[context];
            if (passed > above) return kld;
        }
        return 0;
    }

    std::vector<std::pair<double, std::size_t>> largest_first_;  // KLD, context
    std::vector<double> sums_, same_top_;
    std::vector<std::size_t> n_;
};

// nullopt: one of them is no number, such as a ratio to nothing.
std::optional<Interval> middle(std::vector<double> figures) {
    const auto is_finite = [](double figure) { return std::isfinite(figure); };
    if (figures.empty() || !std::all_of(figures.begin(), figures.end(), is_finite)) return std::nullopt;
    std::sort(figures.begin(), figures.end());
    const auto at = [&](double share) {
        return figures[std::size_t(share * double(figures.size() - 1) + 0.5)];
    };
    return Interval{at(0.025), at(0.975)};
}

}  // namespace

std::optional<Intervals> intervals(const std::vector<Divergence>& contexts,
                                   const std::vector<Divergence>* baseline) {
    if (contexts.size() < kLeastContexts) return std::nullopt;
    const Sample sample(contexts);
    const std::optional<Sample> other = baseline != nullptr && baseline->size() == contexts.size()
                                            ? std::optional<Sample>(*baseline)
                                            : std::nullopt;
    std::vector<double> mean, p999, top1, mean_ratio, p999_ratio;
    for (const Draw& draw : draws(contexts.size())) {
        const Sample::Figures figures = sample.of(draw);
        mean.push_back(figures.mean);
        p999.push_back(figures.p999);
        top1.push_back(figures.top1);
        if (!other) continue;
        const Sample::Figures base = other->of(draw);
        mean_ratio.push_back(figures.mean / base.mean);
        p999_ratio.push_back(figures.p999 / base.p999);
    }
    const auto mean_of = middle(mean), p999_of = middle(p999), top1_of = middle(top1);
    if (!mean_of || !p999_of || !top1_of) return std::nullopt;
    return Intervals{*mean_of, *p999_of, *top1_of, middle(mean_ratio), middle(p999_ratio)};
}

}  // namespace mixed_kv::tools
