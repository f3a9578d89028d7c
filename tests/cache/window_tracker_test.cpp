#include <gtest/gtest.h>

#include <bit>
#include <chrono>
#include <numeric>
#include <set>
#include <vector>

#include "cache/mask_scan.h"
#include "cache/window_reference.h"
#include "mixed_kv/error.h"
#include "mixed_kv/window_tracker.h"
#include "support/random.h"

namespace mixed_kv::test {
namespace {

using Visible = std::vector<std::vector<std::set<std::int64_t>>>;

std::set<std::int64_t> window_of(const WindowTracker& tracker, int stream = 0) {
    std::set<std::int64_t> cells;
    for (std::int64_t i = 0; i < tracker.config().n_cells; ++i) {
        if ((tracker.window_cells(stream, i / 64) >> (i % 64) & 1) != 0) cells.insert(i);
    }
    return cells;
}

std::set<std::int64_t> sinks_of(const WindowTracker& tracker, int stream = 0) {
    std::set<std::int64_t> cells;
    for (std::int64_t i = 0; i < tracker.config().n_cells; ++i) {
        if ((tracker.sink_cells(stream, i / 64) >> (i % 64) & 1) != 0) cells.insert(i);
    }
    return cells;
}

std::set<std::int64_t> range(std::int64_t first, std::int64_t end) {
    std::set<std::int64_t> cells;
    for (std::int64_t i = first; i < end; ++i) cells.insert(i);
    return cells;
}

// Sequences in a cache, as llama.cpp would show them: every query sees its own sequence up to itself.
struct Driver {
    explicit Driver(const WindowTracker::Config& config) : tracker(config) {}

    // One graph on stream 0; cells[i] gets a token of sequence[i].
    void decode(const std::vector<std::int64_t>& cells, const std::vector<int>& sequence) {
        ++epoch;
        tracker.on_write(epoch, cells);
        Visible visible(1);
        std::int64_t n_kv = 0;
        for (std::size_t i = 0; i < cells.size(); ++i) {
            for (auto& seq : sequences) seq.erase(cells[i]);
            sequences[static_cast<std::size_t>(sequence[i])].insert(cells[i]);
            visible[0].push_back(sequences[static_cast<std::size_t>(sequence[i])]);
        }
        for (const auto& seq : sequences) {
            if (!seq.empty()) n_kv = std::max(n_kv, *seq.rbegin() + 1);
        }
        const Mask mask(visible, n_kv);
        tracker.on_mask(epoch, mask.view(), 0, 1, static_cast<std::int64_t>(cells.size()), n_kv);
    }
    void decode_run(std::int64_t first, std::int64_t n, int sequence) {
        std::vector<std::int64_t> cells(static_cast<std::size_t>(n));
        std::iota(cells.begin(), cells.end(), first);
        decode(cells, std::vector<int>(cells.size(), sequence));
    }

    WindowTracker tracker;
    std::uint64_t epoch = 0;
    std::vector<std::set<std::int64_t>> sequences{8};
};

TEST(MaskScan, FindsVisibleCells) {
    Random random(1);
    for (int round = 0; round < 2000; ++round) {
        const std::int64_t n = round % 3 == 0 ? 1 + random.below(63) : 64;
        const fp16_t values[] = {0, kMaskedOut, 0x8000, 0x7c00, 0x7bff, 0xfbff, 0xfc01, 0xffff, 0x0001};
        fp16_t row[64];
        std::uint64_t expected = 0;
        const int n_values = 2 + random.below(8);
        for (int t = 0; t < 64; ++t) {
            row[t] = values[random.below(n_values)];
            if (round % 5 == 0) row[t] = kMaskedOut;
            if (t < n && row[t] != kMaskedOut) expected |= std::uint64_t{1} << t;
        }
        ASSERT_EQ(cache::visible_cells(row, n), expected);
    }
}

TEST(WindowTracker, FreshRowsAreProtectedUntilAMaskIsSeen) {
    WindowTracker tracker({256, 1, 8, 0});
    std::vector<std::int64_t> cells(40);
    std::iota(cells.begin(), cells.end(), 0);
    tracker.on_write(1, cells);
    EXPECT_EQ(window_of(tracker), range(0, 40));
    tracker.on_write(1, std::vector<std::int64_t>{100});  // the same graph, another layer
    EXPECT_EQ(window_of(tracker), range(0, 40));
    tracker.on_mask(1, MaskView{}, 0, 1, 40, 40);
    EXPECT_EQ(window_of(tracker), range(32, 40));
}

TEST(WindowTracker, LastRowsByWriteOrder) {
    Driver driver({256, 1, 8, 2});
    driver.decode_run(0, 100, 0);
    EXPECT_EQ(window_of(driver.tracker), range(92, 100));
    EXPECT_EQ(sinks_of(driver.tracker), range(0, 2));
    driver.decode({100}, {0});
    EXPECT_EQ(window_of(driver.tracker), range(93, 101));
    driver.decode({10}, {0});  // a hole, filled: the newest row is not the last cell
    auto expected = range(94, 101);
    expected.insert(10);
    EXPECT_EQ(window_of(driver.tracker), expected);
    EXPECT_EQ(sinks_of(driver.tracker), range(0, 2));
}

TEST(WindowTracker, IdleSequencesKeepTheirWindow) {
    Driver driver({1024, 1, 16, 4});
    driver.decode_run(0, 100, 0);
    driver.decode_run(100, 100, 1);
    auto expected = range(84, 100);
    expected.merge(range(184, 200));
    EXPECT_EQ(window_of(driver.tracker), expected);
    for (std::int64_t cell = 200; cell < 400; ++cell) driver.decode({cell}, {1});
    expected = range(84, 100);
    expected.merge(range(384, 400));
    EXPECT_EQ(window_of(driver.tracker), expected);
    auto sinks = range(0, 4);
    sinks.merge(range(100, 104));
    EXPECT_EQ(sinks_of(driver.tracker), sinks);
}

TEST(WindowTracker, SlotsDecodeTogether) {
    Driver driver({1024, 1, 4, 2});
    // Four slots, tokens interleaved in one graph each.
    for (std::int64_t step = 0; step < 50; ++step) {
        driver.decode({4 * step, 4 * step + 1, 4 * step + 2, 4 * step + 3}, {0, 1, 2, 3});
    }
    EXPECT_EQ(window_of(driver.tracker), range(184, 200));
    EXPECT_EQ(sinks_of(driver.tracker), range(0, 8));
}

TEST(WindowTracker, RewrittenSinkIsNoLongerOne) {
    Driver driver({256, 1, 4, 4});
    driver.decode_run(0, 50, 0);
    driver.sequences[0].clear();
    for (std::int64_t i = 2; i < 50; ++i) driver.sequences[0].insert(i);
    driver.decode({1}, {0});  // the cell now holds a late token
    EXPECT_EQ(sinks_of(driver.tracker), (std::set<std::int64_t>{0, 2, 3}));
}

TEST(WindowTracker, RingOfASlidingWindow) {
    const int n_cells = 96, swa = 64;
    WindowTracker tracker({n_cells, 1, 16, 4});
    for (std::uint64_t token = 0; token < 1000; ++token) {
        const auto cell = static_cast<std::int64_t>(token % n_cells);
        tracker.on_write(token, std::vector<std::int64_t>{cell});
        Visible visible(1, {{}});
        std::set<std::int64_t> expected;
        for (std::uint64_t back = 0; back < swa && back <= token; ++back) {
            visible[0][0].insert(static_cast<std::int64_t>((token - back) % n_cells));
            if (back < 16) expected.insert(static_cast<std::int64_t>((token - back) % n_cells));
        }
        tracker.on_mask(token, Mask(visible, n_cells).view(), 0, 1, 1, n_cells);
        ASSERT_EQ(window_of(tracker), expected) << token;
    }
    EXPECT_TRUE(sinks_of(tracker).empty());
}

TEST(WindowTracker, BoundDropsTheOldestEvidence) {
    const std::int64_t n_cells = 1024;
    Driver driver({n_cells, 1, 16, 0});
    driver.sequences.resize(40);
    for (int seq = 0; seq < 12; ++seq) driver.decode_run(seq * 20, 20, seq);
    // 8 * 16 = 1024 / 8 = 128 cells beside the current graph's 16: sequences 3 .. 10 and 11.
    std::set<std::int64_t> expected;
    for (int seq = 3; seq < 12; ++seq) expected.merge(range(seq * 20 + 4, seq * 20 + 20));
    EXPECT_EQ(window_of(driver.tracker), expected);
}

TEST(WindowTracker, CountsThatDisagreeAreScannedInFull) {
    WindowTracker tracker({128, 1, 4, 2});
    std::vector<std::int64_t> cells(20);
    std::iota(cells.begin(), cells.end(), 0);
    tracker.on_write(1, cells);
    // Three queries for twenty tokens: no query has an own cell, so none hides another and no cell is a sink.
    const Visible visible{{range(0, 1), range(0, 10), range(10, 20)}};
    tracker.on_mask(1, Mask(visible, 20).view(), 0, 1, 3, 20);
    auto expected = range(6, 10);
    expected.merge(range(16, 20));
    expected.insert(0);
    EXPECT_EQ(window_of(tracker), expected);
    EXPECT_TRUE(sinks_of(tracker).empty());
}

TEST(WindowTracker, Streams) {
    WindowTracker tracker({128, 3, 4, 2});
    std::vector<std::int64_t> cells;
    for (const std::int64_t stream : {1, 2}) {
        for (std::int64_t i = 0; i < 10; ++i) cells.push_back(stream * 128 + i);
    }
    tracker.on_write(1, cells);
    Visible visible(2);
    for (std::int64_t q = 0; q < 10; ++q) {
        visible[0].push_back(range(0, q + 1));
        visible[1].push_back(range(0, q + 1));
    }
    tracker.on_mask(1, Mask(visible, 64).view(), 1, 2, 10, 64);
    EXPECT_TRUE(window_of(tracker, 0).empty());
    for (const int stream : {1, 2}) {
        EXPECT_EQ(window_of(tracker, stream), range(6, 10));
        EXPECT_EQ(sinks_of(tracker, stream), range(0, 2));
    }
}

TEST(WindowTracker, Restore) {
    WindowTracker tracker({512, 2, 16, 4});
    tracker.on_restore(512 + 10, 100);
    EXPECT_EQ(window_of(tracker, 1), range(94, 110));
    EXPECT_EQ(sinks_of(tracker, 1), range(10, 14));
    EXPECT_TRUE(window_of(tracker, 0).empty());
    tracker.on_restore(20, 18);  // short: all of it stays
    EXPECT_EQ(window_of(tracker, 0), range(20, 38));
    EXPECT_TRUE(sinks_of(tracker, 0).empty());
}

TEST(WindowTracker, RestoreInPieces) {
    for (const std::int64_t piece : {1, 3, 17, 40}) {
        WindowTracker tracker({512, 1, 16, 4});
        const int tensor = 0, other = 0;
        for (std::int64_t at = 10; at < 210; at += piece) {
            tracker.on_restore(at, std::min(piece, 210 - at), &tensor);
        }
        EXPECT_EQ(window_of(tracker), range(194, 210)) << piece;
        EXPECT_EQ(sinks_of(tracker), range(10, 14)) << piece;
        // Another tensor: a range of its own, though it begins where the last one ended.
        tracker.on_restore(210, 100, &other);
        auto expected = range(194, 210);
        expected.merge(range(294, 310));
        EXPECT_EQ(window_of(tracker), expected);
    }
}

TEST(WindowTracker, Clear) {
    Driver driver({256, 1, 8, 2});
    driver.decode_run(0, 100, 0);
    driver.tracker.clear();
    EXPECT_TRUE(window_of(driver.tracker).empty());
    EXPECT_TRUE(sinks_of(driver.tracker).empty());
    EXPECT_EQ(driver.tracker.n_window_cells(0), 0);
}

TEST(WindowTracker, RefusesImpossibleValues) {
    EXPECT_THROW(WindowTracker({0, 1, 8, 2}), Error);
    EXPECT_THROW(WindowTracker({10, 0, 8, 2}), Error);
    EXPECT_THROW(WindowTracker({10, 1, -1, 2}), Error);
    EXPECT_THROW(WindowTracker({10, 1, 8, -2}), Error);
    EXPECT_THROW(WindowTracker({100, 1, 8, 2, 100}), Error);
}

// A prompt batch of one sequence in a long cache: one full scan, not 512. The bound leaves room for slow
// machines and sanitizers; a scan of every row in a naive way takes more than that.
TEST(WindowTracker, CostOfALongPrompt) {
    const std::int64_t n_cells = 32768, n_q = 512;
    WindowTracker tracker({n_cells, 1, 64, 4});
    std::vector<fp16_t> mask(static_cast<std::size_t>(n_q * n_cells), kMaskedOut);
    std::vector<std::int64_t> cells(static_cast<std::size_t>(n_q));
    double best = 1e9;
    for (std::uint64_t graph = 0; graph < n_cells / n_q; ++graph) {
        for (std::int64_t q = 0; q < n_q; ++q) {
            const std::int64_t own = static_cast<std::int64_t>(graph) * n_q + q;
            cells[static_cast<std::size_t>(q)] = own;
            std::fill_n(mask.begin() + q * n_cells, own + 1, fp16_t{0});
        }
        const auto start = std::chrono::steady_clock::now();
        tracker.on_write(graph, cells);
        tracker.on_mask(graph, {mask.data(), n_cells * 2, 0, 0, 1, 1}, 0, 1, n_q, n_cells);
        const std::chrono::duration<double, std::milli> time = std::chrono::steady_clock::now() - start;
        if (graph >= n_cells / n_q - 8) best = std::min(best, time.count());
    }
    RecordProperty("milliseconds", std::to_string(best));
    EXPECT_EQ(window_of(tracker), range(n_cells - 64, n_cells));
    EXPECT_LT(best, 20.0);
}

}  // namespace
}  // namespace mixed_kv::test
