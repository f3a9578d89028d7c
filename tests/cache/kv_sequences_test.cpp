#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <map>
#include <vector>

#include "cache/kv_driver.h"

// Several sequences on one unified stream, read from the page states: what a llama-server with slots does.
namespace mixed_kv::test {
namespace {

// The cell is stored exactly.
bool exact(const KvDriver& cache, std::int64_t cell) {
    const Page& page = cache.page(cell / 64);
    return page.state == PageState::hot ||
           (page.state == PageState::cold && (page.overlay >> (cell % 64) & 1) != 0);
}

TEST(KvSequences, EachSlotKeepsItsWindowAndSinks) {
    KvDriver cache({.n_cells = 2048, .window = 32, .sinks = 4});
    // Four prompts, one after the other, then interleaved generation.
    for (int slot = 0; slot < 4; ++slot) cache.decode_run(slot * 200, 200, slot);
    std::map<int, std::vector<std::int64_t>> cells_of;
    for (int slot = 0; slot < 4; ++slot) {
        for (std::int64_t i = 0; i < 200; ++i) cells_of[slot].push_back(slot * 200 + i);
    }
    for (std::int64_t step = 0; step < 100; ++step) {
        const std::int64_t first = 800 + 4 * step;
        cache.decode({first, first + 1, first + 2, first + 3}, {0, 1, 2, 3});
        for (int slot = 0; slot < 4; ++slot) cells_of[slot].push_back(first + slot);
    }
    for (int slot = 0; slot < 4; ++slot) {
        const auto& cells = cells_of[slot];
        for (std::size_t i = 0; i < 4; ++i)
            EXPECT_TRUE(exact(cache, cells[i])) << "sink " << i << " of slot " << slot;
        for (std::size_t i = cells.size() - 32; i < cells.size(); ++i) {
            EXPECT_TRUE(exact(cache, cells[i])) << "window of slot " << slot;
        }
    }
    // And the rest is cold: pages in the middle hold no exact rows at all.
    EXPECT_EQ(cache.page(1).state, PageState::cold);
    EXPECT_EQ(cache.page(1).overlay, 0u);
    EXPECT_EQ(cache.states(), "cccccccccccccccchhh.............");
}

TEST(KvSequences, IdleSlotKeepsItsWindowWhileAnotherDecodes) {
    KvDriver cache({.n_cells = 2048, .window = 48, .sinks = 2});
    cache.decode_run(0, 320, 0);
    cache.decode_run(320, 100, 1);
    cache.decode_one_by_one(420, 700, 1);
    for (std::int64_t cell = 320 - 48; cell < 320; ++cell) EXPECT_TRUE(exact(cache, cell)) << cell;
    EXPECT_EQ(cache.page(2).state, PageState::cold);
    EXPECT_FALSE(exact(cache, 200));
    EXPECT_FALSE(exact(cache, 500));
    for (const std::int64_t cell : {0, 1, 320, 321}) EXPECT_TRUE(exact(cache, cell)) << "sink " << cell;
    // The idle slot goes on: its old window ages out.
    cache.decode_one_by_one(1120, 200, 0);
    EXPECT_EQ(cache.page(4).state, PageState::cold);
    EXPECT_FALSE(exact(cache, 300));
}

TEST(KvSequences, HolesAreFilledWithoutTouchingNeighbours) {
    KvDriver cache({.n_cells = 512, .window = 16, .sinks = 2});
    // Two slots, alternating cells; slot 1 leaves, and slot 2 fills its single-cell holes.
    for (std::int64_t i = 0; i < 256; i += 2) cache.decode({i, i + 1}, {0, 1});
    cache.decode_run(256, 60, 0);
    ASSERT_EQ(cache.page(0).state, PageState::cold);
    ASSERT_EQ(cache.page(1).state, PageState::cold);
    const auto bytes = cache.tensor.layout().block_bytes * 2;
    std::vector<std::vector<std::byte>> before;
    for (int p = 0; p < 2; ++p)
        before.emplace_back(cache.page(p).first.data, cache.page(p).first.data + bytes);
    cache.sequences[1].clear();
    std::vector<std::int64_t> holes;
    for (std::int64_t i = 5; i < 128; i += 10) holes.push_back(i);
    for (const std::int64_t hole : holes) cache.decode({hole}, {2});
    for (int p = 0; p < 2; ++p) {
        EXPECT_EQ(std::memcmp(cache.page(p).first.data, before[static_cast<std::size_t>(p)].data(), bytes), 0)
            << "rows nobody wrote keep their block bit for bit";
    }
    for (const std::int64_t hole : holes) EXPECT_TRUE(exact(cache, hole));
}

TEST(KvSequences, SpeculationRollsBackAndRewrites) {
    KvDriver cache({.n_cells = 1024, .window = 24, .sinks = 4});
    cache.decode_run(0, 300, 0);
    std::int64_t n = 300;
    for (int round = 0; round < 120; ++round) {
        const std::int64_t draft = 1 + cache.random.below(8);
        cache.decode_run(n, draft, 0);
        const std::int64_t accepted = cache.random.below(static_cast<int>(draft) + 1);
        for (std::int64_t i = n + accepted; i < n + draft; ++i) cache.sequences[0].erase(i);
        n += accepted;
    }
    // Up to eight rejected tokens stood in the window for as many that are older.
    for (std::int64_t cell = n - 16; cell < n; ++cell) EXPECT_TRUE(exact(cache, cell));
}

TEST(KvSequences, BoundHoldsForManyForgottenSequences) {
    KvDriver cache({.n_cells = 4096, .shape = {1, 32}, .window = 64, .sinks = 0});
    cache.sequences.resize(60);
    for (int seq = 0; seq < 50; ++seq) cache.decode_run(seq * 80, 80, seq);
    std::int64_t n_exact = 0;
    for (std::int64_t cell = 0; cell < 50 * 80; ++cell) n_exact += exact(cache, cell) ? 1 : 0;
    // 8 * 64 = 4096 / 8 cells, the graph's own 80, and the page rounding of each of nine windows.
    EXPECT_LE(n_exact, 512 + 80 + 9 * 127);
    EXPECT_LE(cache.tracker.n_window_cells(0), 512 + 80);
    EXPECT_TRUE(exact(cache, 49 * 80 + 79));
    EXPECT_FALSE(exact(cache, 40));
}

// Relative RMS of the rows of an idle sequence at even cells, when rows `size` times as large come into the
// gaps between them, by a restore or by a graph.
double error_beside(float size, const std::string& format, KvRole role, bool restored) {
    KvDriver cache({.role = role, .n_cells = 512, .format = format, .window = 16, .sinks = 0});
    std::vector<std::int64_t> even, odd;
    for (std::int64_t i = 0; i < 256; i += 2) {
        even.push_back(i);
        odd.push_back(i + 1);
    }
    cache.decode(even, std::vector<int>(even.size(), 0));
    const std::vector<fp16_t> exact(cache.model.rows());
    const std::vector<float> foreign = cache.random_rows(odd.size(), size);
    const std::size_t row_elements = cache.row_elements();
    if (restored) {
        for (std::size_t i = 0; i < odd.size(); ++i) {
            std::vector<fp16_t> row(row_elements);
            for (std::size_t c = 0; c < row_elements; ++c)
                row[c] = fp32_to_fp16(foreign[i * row_elements + c]);
            cache.write_bytes(static_cast<std::size_t>(odd[i]) * cache.row_bytes(), row, 0,
                              cache.row_bytes());
        }
    } else {
        cache.decode_rows(odd, std::vector<int>(odd.size(), 1), foreign);
    }
    cache.decode_run(256, 100, 2);  // others go on, and what can freeze does
    cache.decode_run(356, 1, 2);
    double difference = 0, squares = 0;
    for (const std::int64_t cell : even) {
        for (std::size_t c = 0; c < row_elements; ++c) {
            const auto at = static_cast<std::size_t>(cell) * row_elements + c;
            const double truth = fp16_to_fp32(exact[at]);
            difference += std::pow(fp16_to_fp32(cache.model.rows()[at]) - truth, 2);
            squares += truth * truth;
        }
    }
    return std::sqrt(difference / squares);
}

TEST(KvSequences, ForeignRowsDoNotCoarsenAnIdleSequence) {
    for (const char* format : {"q8", "q6", "q5", "q4", "q3", "q2"}) {
        for (const KvRole role : {KvRole::key, KvRole::value}) {
            const double beside_like = error_beside(1.0f, format, role, false);
            EXPECT_GT(beside_like, 1e-4) << "nothing was rounded: this test tests nothing";
            for (const float size : {0.01f, 5.0f, 20.0f, 100.0f, 1024.0f}) {
                for (const bool restored : {false, true}) {
                    EXPECT_LE(error_beside(size, format, role, restored), 1.2 * beside_like)
                        << format << (role == KvRole::key ? " keys" : " values") << " beside rows " << size
                        << " times as large, " << (restored ? "restored" : "written");
                }
            }
        }
    }
}

}  // namespace
}  // namespace mixed_kv::test
