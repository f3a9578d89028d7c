#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <vector>

#include "cache/window_reference.h"
#include "support/random.h"

namespace mixed_kv::test {
namespace {

using Visible = std::vector<std::vector<std::set<std::int64_t>>>;

// Random graphs of random sequences (shared cells, holes, rollbacks, trees, wrong counts), restores and
// copies; after each step the tracker must equal the rules applied cell by cell.
class WindowProperties : public testing::TestWithParam<int> {};

TEST_P(WindowProperties, FollowsTheRules) {
    const int seed = GetParam();
    RecordProperty("seed", seed);
    SCOPED_TRACE("seed " + std::to_string(seed));
    Random random(static_cast<std::uint64_t>(seed));
    const std::int64_t sizes[] = {1, 63, 64, 65, 200, 500};
    const int windows[] = {0, 1, 8, 64, 300};
    WindowTracker::Config config{sizes[random.below(6)], 1 + random.below(3), windows[random.below(5)],
                                 random.below(3) == 0 ? 0 : random.below(6)};
    // Some trackers run out of write orders again and again.
    if (seed % 2 == 0) {
        config.counter_limit =
            static_cast<std::uint32_t>(config.n_cells * config.n_stream + 1 + random.below(200));
    }
    SCOPED_TRACE("cells " + std::to_string(config.n_cells) + " streams " + std::to_string(config.n_stream) +
                 " window " + std::to_string(config.window) + " sinks " + std::to_string(config.sinks));
    WindowTracker tracker(config);
    WindowReference reference(config);

    const auto n = static_cast<int>(config.n_cells);
    std::vector<std::vector<std::set<std::int64_t>>> sequences(static_cast<std::size_t>(config.n_stream),
                                                               std::vector<std::set<std::int64_t>>(3));
    std::uint64_t epoch = 0;
    for (int step = 0; step < 150; ++step) {
        ++epoch;
        const int kind = random.below(20);
        if (kind == 0) {
            const std::int64_t all = config.n_cells * config.n_stream;
            const std::int64_t first = random.below(static_cast<int>(all));
            const std::int64_t count = 1 + random.below(static_cast<int>(all - first));
            const int tensor = 0;
            tracker.on_restore(first, count, random.below(2) == 0 ? &tensor : nullptr);
            reference.on_restore(first, count);
            tracker.on_write(++epoch, {});  // ends the restore
            reference.on_write({});
        } else if (kind == 1) {
            const std::int64_t all = config.n_cells * config.n_stream;
            const std::int64_t from = random.below(static_cast<int>(all)),
                               to = random.below(static_cast<int>(all));
            const std::int64_t count = 1 + random.below(static_cast<int>(all - std::max(from, to)));
            tracker.on_copy(from, to, count);
            reference.on_copy(from, to, count);
        } else {
            const int first_stream = random.below(config.n_stream);
            const int n_stream = 1 + random.below(config.n_stream - first_stream);
            const int n_q = 1 + random.below(random.below(3) == 0 ? 60 : 3);
            const std::int64_t n_kv = random.below(3) == 0 ? config.n_cells : 1 + random.below(n);
            std::vector<std::int64_t> tokens;
            Visible visible(static_cast<std::size_t>(n_stream));
            for (int s = 0; s < n_stream; ++s) {
                auto& in_stream = sequences[static_cast<std::size_t>(first_stream + s)];
                std::int64_t next = random.below(n);
                for (int q = 0; q < n_q; ++q) {
                    next = random.below(8) == 0 ? random.below(n) : (next + 1) % n;
                    tokens.push_back((first_stream + s) * config.n_cells + next);
                    auto& sequence = in_stream[static_cast<std::size_t>(random.below(3))];
                    if (random.below(4) != 0) {
                        for (auto& other : in_stream) other.erase(next);
                    }
                    if (random.below(10) == 0) sequence.clear();
                    if (random.below(10) != 0) sequence.insert(next);
                    std::set<std::int64_t> seen;
                    for (const std::int64_t cell : sequence) {
                        if (cell < n_kv) seen.insert(cell);
                    }
                    visible[static_cast<std::size_t>(s)].push_back(seen);
                }
            }
            const bool writes = random.below(8) != 0;
            if (writes) {
                if (random.below(8) == 0) tokens.pop_back();
                tracker.on_write(epoch, tokens);
                reference.on_write(tokens);
            }
            if (random.below(8) != 0) {
                const bool known = tokens.size() == static_cast<std::size_t>(n_stream * n_q);
                const Mask mask(visible, n_kv);
                tracker.on_mask(epoch, mask.view(), first_stream, n_stream, n_q, n_kv);
                reference.on_mask(visible, first_stream,
                                  !writes ? WindowReference::Tokens::none
                                  : known ? WindowReference::Tokens::known
                                          : WindowReference::Tokens::miscounted);
            }
        }
        ASSERT_EQ(reference.difference(tracker), "") << "step " << step << " kind " << kind;
    }
}

INSTANTIATE_TEST_SUITE_P(Seeds, WindowProperties, testing::Range(1, 41));

}  // namespace
}  // namespace mixed_kv::test
