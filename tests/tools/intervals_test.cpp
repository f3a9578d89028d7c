#include "mixed-kv-eval/intervals.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

namespace mixed_kv::test {

namespace {

using tools::Divergence;

// One scored position with this KLD: of a fair coin and one that shows heads with probability p.
void add_position(Divergence& divergence, double kld) {
    const double p = 0.5 * (1 + std::sqrt(1 - std::exp(-2 * kld)));
    divergence.add({std::log(0.5), std::log(0.5)}, {std::log(p), std::log(1 - p)}, 0);
}

std::vector<Divergence> contexts_of(const std::vector<std::vector<double>>& klds) {
    std::vector<Divergence> contexts(klds.size());
    for (std::size_t i = 0; i < klds.size(); ++i) {
        for (const double kld : klds[i]) add_position(contexts[i], kld);
    }
    return contexts;
}

TEST(Intervals, FewContextsHaveNone) {
    EXPECT_FALSE(tools::intervals(contexts_of({{1}, {2}, {3}}), nullptr));
    EXPECT_TRUE(tools::intervals(contexts_of({{1}, {2}, {3}, {4}}), nullptr));
}

TEST(Intervals, EqualContextsLeaveNoDoubt) {
    const auto contexts = contexts_of({{0.1, 0.3}, {0.1, 0.3}, {0.1, 0.3}, {0.1, 0.3}});
    const auto interval = tools::intervals(contexts, nullptr);
    ASSERT_TRUE(interval);
    EXPECT_NEAR(interval->kld_mean.low, 0.2, 1e-9);
    EXPECT_NEAR(interval->kld_mean.high, 0.2, 1e-9);
    EXPECT_NEAR(interval->kld_p999.low, 0.3, 1e-9);
    EXPECT_FALSE(interval->kld_mean_ratio);
}

// Contexts differ a hundredfold, and one cache loses half of what the other does in each.
TEST(Intervals, RatiosAreOfPairs) {
    std::vector<std::vector<double>> klds, halves;
    for (int i = 0; i < 8; ++i) {
        const double kld = std::pow(10, i / 4.0 - 4);
        klds.push_back({kld, 3 * kld});
        halves.push_back({kld / 2, 3 * kld / 2});
    }
    const auto base = contexts_of(klds);
    const auto interval = tools::intervals(contexts_of(halves), &base);
    ASSERT_TRUE(interval && interval->kld_mean_ratio && interval->kld_p999_ratio);
    EXPECT_NEAR(interval->kld_mean_ratio->low, 0.5, 1e-6);
    EXPECT_NEAR(interval->kld_mean_ratio->high, 0.5, 1e-6);
    EXPECT_NEAR(interval->kld_p999_ratio->high, 0.5, 1e-6);
    EXPECT_GT(interval->kld_mean.high, 3 * interval->kld_mean.low);

    const auto nothing = contexts_of(std::vector<std::vector<double>>(8, {0.0, 0.0}));
    EXPECT_FALSE(tools::intervals(contexts_of(klds), &nothing)->kld_mean_ratio) << "no ratio to nothing";
}

// The mean of what contexts are drawn from lies in about 95 of 100 intervals.
TEST(Intervals, CoverTheMean) {
    std::mt19937 random(5);
    std::gamma_distribution<double> gamma(2.0, 0.01);
    int covered = 0;
    constexpr int kRuns = 200;
    for (int run = 0; run < kRuns; ++run) {
        std::vector<std::vector<double>> klds(25);
        for (auto& context : klds) context = {gamma(random)};
        const auto interval = tools::intervals(contexts_of(klds), nullptr);
        covered += interval->kld_mean.low <= 0.02 && 0.02 <= interval->kld_mean.high;
    }
    EXPECT_GE(covered, 0.86 * kRuns);
    EXPECT_LE(covered, 0.99 * kRuns);
}

}  // namespace

}  // namespace mixed_kv::test
