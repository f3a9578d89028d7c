#include "cache/step_order.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <set>
#include <vector>

#include "cache/budget_shares.h"
#include "support/random.h"

namespace mixed_kv::test {
namespace {

using cache::BudgetClaim;
using cache::Step;
using cache::StepOrder;

TEST(StepOrder, WidestAndOldestFirst) {
    StepOrder order(3);
    order.add({10, 1, false, 5});
    order.add({11, 0, false, 9});
    order.add({12, 0, false, 8});
    order.add({13, 0, true, 1});
    order.add({14, 3, false, 2});  // has nowhere to go
    order.note_in_use(1);
    const std::vector<std::pair<std::uint32_t, int>> expected = {{12, 1}, {11, 1}, {10, 2}, {13, 3}};
    for (const auto& [page, rung] : expected) {
        const auto step = order.next();
        ASSERT_TRUE(step.has_value());
        EXPECT_EQ(step->page, page);
        EXPECT_EQ(step->to_rung, rung);
    }
    EXPECT_FALSE(order.next().has_value());
}

// When all others are far down the ladder, a page does not take the rungs between.
TEST(StepOrder, JoinsTheOthers) {
    StepOrder order(3);
    order.add({1, 0, false, 1});
    order.note_in_use(3);
    order.note_in_use(2);
    EXPECT_EQ(order.next()->to_rung, 2);
    StepOrder first(3);
    first.add({1, 0, false, 1});
    EXPECT_EQ(first.next()->to_rung, 1);
}

// A cache that fills up page by page, with room for a part of it in FP16: what its pages are in, against the
// rule.
TEST(StepOrder, KeepsPagesWithinOneRungOfEachOther) {
    for (int seed = 1; seed <= 200; ++seed) {
        Random random(static_cast<std::uint64_t>(seed));
        const int last = 1 + random.below(4);
        std::vector<double> size = {16, 8.5, 4.5, 3.5, 2.5};
        size.resize(static_cast<std::size_t>(last) + 1);
        const int n_pages = 20 + random.below(200);
        const double room = n_pages * size.back() + random.below(1000) * 0.001 * n_pages * (16 - size.back());
        std::vector<int> rung;
        const auto sum = [&] {
            return std::accumulate(rung.begin(), rung.end(), 0.0,
                                   [&](double s, int r) { return s + size[static_cast<std::size_t>(r)]; });
        };
        std::uint64_t n_steps = 0;
        for (int n = 0; n < n_pages; ++n) {
            rung.push_back(0);
            while (sum() > room) {
                StepOrder order(last);
                for (std::size_t i = 0; i < rung.size(); ++i) {
                    order.add({static_cast<std::uint32_t>(i), rung[i], false, static_cast<std::uint32_t>(i)});
                    if (rung[i] > 0) order.note_in_use(rung[i]);
                }
                const auto step = order.next();
                ASSERT_TRUE(step.has_value())
                    << "seed " << seed << ": nothing left, and " << sum() << " > " << room;
                ASSERT_GT(step->to_rung, rung[step->page]);
                rung[step->page] = step->to_rung;
                ++n_steps;
            }
            // Older pages are on the same rung or lower, but for those still in FP16, the newest.
            for (std::size_t i = 1; i < rung.size(); ++i) ASSERT_GE(rung[i - 1], rung[i]) << "seed " << seed;
            const auto cold = std::count_if(rung.begin(), rung.end(), [](int r) { return r > 0; });
            if (cold > 0) {
                ASSERT_LE(rung.front() - rung[static_cast<std::size_t>(cold) - 1], 1) << "seed " << seed;
            }
            if (n_steps == 0) {
                ASSERT_EQ(cold, 0) << "seed " << seed;
            }
        }
        EXPECT_LE(n_steps, static_cast<std::uint64_t>(n_pages * last)) << "seed " << seed;
    }
}

TEST(BudgetShares, EveryoneHasItsLowestAndNobodyMoreThanItNeeds) {
    for (int seed = 1; seed <= 200; ++seed) {
        Random random(static_cast<std::uint64_t>(seed));
        std::vector<BudgetClaim> claims;
        double lowest = 0, exact = 0;
        for (int i = 1 + random.below(20); i > 0; --i) {
            const double full = 100 + random.below(1000);
            claims.push_back({full, full * (0.2 + 0.01 * random.below(80))});
            lowest += claims.back().lowest;
            exact += full;
        }
        const double bytes = lowest * 0.5 + random.below(1000) * 0.001 * exact * 1.5;
        const auto shares = cache::share_budget(bytes, claims);
        if (bytes < lowest) {
            EXPECT_TRUE(shares.empty());
            continue;
        }
        ASSERT_EQ(shares.size(), claims.size());
        double sum = 0;
        for (std::size_t i = 0; i < claims.size(); ++i) {
            EXPECT_GE(shares[i], claims[i].lowest);
            EXPECT_LE(shares[i], claims[i].exact * (1 + 1e-12));
            sum += shares[i];
        }
        EXPECT_NEAR(sum, std::min(bytes, exact), 1e-9 * exact);
    }
}

}  // namespace
}  // namespace mixed_kv::test
