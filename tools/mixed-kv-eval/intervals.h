#pragma once

#include <optional>
#include <vector>

#include "mixed-kv-eval/divergence.h"

namespace mixed_kv::tools {

// A 95 % interval.
struct Interval {
    double low = 0, high = 0;
};

// How far figures over several contexts can be trusted: contexts are drawn again, with replacement, and the
// middle 95 % of what that gives is the interval (percentile bootstrap). Every configuration sees the same
// draws, so ratios are of pairs: what makes a context hard for both does not widen them.
struct Intervals {
    Interval kld_mean, kld_p999, top1;
    // Relative to the baseline's.
    std::optional<Interval> kld_mean_ratio, kld_p999_ratio;
};

inline constexpr std::size_t kLeastContexts = 4;  // fewer say too little to be drawn from
inline constexpr int kDraws = 1000;

// contexts: of one configuration; baseline: the same contexts of another, or null. nullopt below
// kLeastContexts.
std::optional<Intervals> intervals(const std::vector<Divergence>& contexts,
                                   const std::vector<Divergence>* baseline);

}  // namespace mixed_kv::tools
