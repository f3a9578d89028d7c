#include <gtest/gtest.h>

#include <bit>
#include <cstring>
#include <limits>
#include <thread>
#include <vector>

#include "cache/kv_driver.h"
#include "kernels/contract.h"
#include "mixed_kv/error.h"

namespace mixed_kv::test {
namespace {

TEST(KvTensor, PagesFreezeBehindTheWindow) {
    for (const KvRole role : {KvRole::key, KvRole::value}) {
        KvDriver cache({.role = role});
        EXPECT_EQ(cache.states(), "........");
        cache.decode_run(0, 64);
        EXPECT_EQ(cache.states(), "h.......");
        cache.decode_run(64, 64);
        EXPECT_EQ(cache.states(), "hh......") << "the first page was in the window of the graph before";
        cache.decode({128}, {0});
        EXPECT_EQ(cache.states(), "chh.....");
        EXPECT_EQ(cache.page(0).overlay, 0xfu) << "four sinks";
        cache.decode_one_by_one(129, 62);
        EXPECT_EQ(cache.states(), "chh.....");
        cache.decode({191}, {0});  // now cells 127 .. 190 are the window seen by the last mask
        EXPECT_EQ(cache.states(), "chh.....");
        cache.decode({192}, {0});
        EXPECT_EQ(cache.states(), "cchh....");
        EXPECT_EQ(cache.page(1).overlay, 0u);
        EXPECT_EQ(cache.tensor.counters().freezes, 2u);
    }
}

TEST(KvTensor, LongPromptFreezesWithTheNextGraph) {
    KvDriver cache({.n_cells = 1000});
    cache.decode_run(0, 500);
    EXPECT_EQ(cache.states(), "hhhhhhhh........");
    cache.decode({500}, {0});
    EXPECT_EQ(cache.states(), "cccccchh........");
}

TEST(KvTensor, Float16StaysHot) {
    KvDriver cache({.format = "f16"});
    cache.decode_run(0, 500);
    cache.decode({500}, {0});
    EXPECT_EQ(cache.states(), "hhhhhhhh");
    EXPECT_EQ(cache.tensor.counters().freezes, 0u);
}

TEST(KvTensor, NoTrackerIsNeededForFloat16) {
    PageArena arena;
    KvTensor tensor({KvRole::key, 100, 1, 8, nullptr, &kernel_set("scalar"), &arena, nullptr});
    const std::vector<float> rows(8, 1.0f);
    write_rows(tensor, {99}, {rows.data(), 32, false});
    std::vector<fp16_t> read(8);
    tensor.read_rows(99, 1, read.data());
    EXPECT_EQ(read, std::vector<fp16_t>(8, 0x3c00));
}

TEST(KvTensor, LastPartialPageFreezesWhenItsCellsAreWritten) {
    KvDriver cache({.n_cells = 100, .window = 4, .sinks = 0});
    cache.decode_run(0, 100);
    cache.decode({3}, {0});
    EXPECT_EQ(cache.states(), "hh");
    cache.decode({4}, {0});
    EXPECT_EQ(cache.states(), "hh");
    for (int i = 5; i < 8; ++i) cache.decode({i}, {0});
    EXPECT_EQ(cache.states(), "hc");
}

TEST(KvTensor, NothingFreezesBeforeTheShapeIsKnown) {
    KvDriver cache({.shape_known = false});
    cache.decode_run(0, 300);
    cache.decode({300}, {0});
    EXPECT_EQ(cache.states(), "hhhhh...");
    EXPECT_FALSE(cache.tensor.set_head_shape({3, 20}));
    EXPECT_FALSE(cache.tensor.set_head_shape({0, 64}));
    EXPECT_FALSE(cache.tensor.head_shape_known());
    EXPECT_TRUE(cache.tensor.set_head_shape({2, 32}));
    cache.expect_sound(false);  // rows are where the new shape has them
    cache.decode({301}, {0});
    EXPECT_EQ(cache.states(), "ccchh...");
    EXPECT_TRUE(cache.tensor.set_head_shape({2, 32}));
    EXPECT_FALSE(cache.tensor.set_head_shape({1, 64}));
}

TEST(KvTensor, WritesIntoColdPagesGoToTheOverlay) {
    KvDriver cache({.n_cells = 1024, .window = 32});
    cache.decode_run(0, 512);
    cache.decode({512}, {0});
    ASSERT_EQ(cache.page(2).state, PageState::cold);
    const auto bytes = cache.tensor.layout().block_bytes * 2;
    const std::vector<std::byte> before(cache.page(2).first.data, cache.page(2).first.data + bytes);
    // A rollback to cell 150, then new rows from there on.
    cache.sequences[0] = {};
    for (std::int64_t i = 0; i < 150; ++i) cache.sequences[0].insert(i);
    cache.decode_one_by_one(150, 10);
    EXPECT_EQ(cache.page(2).state, PageState::cold);
    EXPECT_EQ(std::popcount(cache.page(2).overlay), 10);
    EXPECT_EQ(std::memcmp(cache.page(2).first.data, before.data(), bytes), 0)
        << "rows nobody wrote keep their block";
    EXPECT_EQ(cache.tensor.counters().reencodes, 0u);
    // Going on to the page's end and 40 rows beyond: the new rows leave the window and get a block of their
    // own.
    cache.decode_one_by_one(160, 32 + 40);
    EXPECT_EQ(cache.page(2).n_blocks, 2);
    EXPECT_EQ(cache.page(2).overlay, 0u);
    EXPECT_EQ(cache.page(2).first.cells, (std::uint64_t{1} << 22) - 1);
    EXPECT_EQ(std::memcmp(cache.page(2).first.data, before.data(), bytes), 0);
    EXPECT_EQ(cache.tensor.counters().reencodes, 1u);
}

TEST(KvTensor, FullOverlayBecomesAHotPage) {
    KvDriver ring({.n_cells = 192, .window = 32, .sinks = 0});
    const int swa = 128;
    for (std::int64_t token = 0; token < 1000; ++token) {
        const std::int64_t cell = token % 192;
        if (token >= swa) ring.sequences[0].erase((token - swa) % 192);
        ring.decode({cell}, {0});
    }
    EXPECT_GT(ring.tensor.counters().promotions, 8u);
    EXPECT_EQ(ring.tensor.counters().reencodes, 0u)
        << "a ring rewrites whole pages, nothing is encoded twice";
}

TEST(KvTensor, LastOfRepeatedCellsWins) {
    KvDriver cache({});
    const std::vector<float> rows = cache.random_rows(5);
    const std::vector<std::int64_t> cells{7, 8, 7, 8, 7};
    cache.tracker.on_write(1, cells);
    write_rows(cache.tensor, cells, {rows.data(), 256, false});
    for (std::size_t i = 0; i < cells.size(); ++i) cache.model.write_row(cells[i], &rows[i * 64]);
    cache.expect_sound(true);
}

TEST(KvTensor, SourceRows) {
    KvDriver cache({});
    const std::size_t stride = 64 * 2 + 6;
    std::vector<std::byte> bytes(10 * stride);
    const auto rows = cache.random_fp16(10);
    for (std::size_t i = 0; i < 10; ++i) std::memcpy(bytes.data() + i * stride, &rows[i * 64], 128);
    std::vector<std::int64_t> cells(10);
    for (std::size_t i = 0; i < 10; ++i) cells[i] = static_cast<std::int64_t>(37 * i);
    write_rows(cache.tensor, cells, {bytes.data(), stride, true});
    for (std::size_t i = 0; i < 10; ++i) cache.model.write_row(cells[i], &rows[i * 64]);
    cache.expect_sound(true);
    write_rows(cache.tensor, {}, {nullptr, 0, true});
    EXPECT_THROW(cache.tensor.begin_write(std::vector<std::int64_t>{512}, {bytes.data(), stride, true}),
                 Error);
    EXPECT_THROW(cache.tensor.begin_write(std::vector<std::int64_t>{-1}, {bytes.data(), stride, true}),
                 Error);
    EXPECT_EQ(cache.tensor.n_jobs(), 0);
    cache.expect_sound(true);
}

TEST(KvTensor, JobsSpreadOverThreads) {
    KvDriver cache({.n_cells = 2048, .shape = {16, 64}});
    const auto rows = cache.random_rows(512);
    std::vector<std::int64_t> cells(512);
    for (int graph = 0; graph < 3; ++graph) {
        std::iota(cells.begin(), cells.end(), graph * 512);
        cache.tracker.on_write(static_cast<std::uint64_t>(graph), cells);
        cache.tensor.begin_write(cells, {rows.data(), 4096, false});
        const int n_jobs = cache.tensor.n_jobs();
        EXPECT_GE(n_jobs, 16);
        std::vector<std::thread> threads;
        for (int thread = 0; thread < 4; ++thread) {
            threads.emplace_back([&, thread] {
                for (int job = thread; job < n_jobs; job += 4) cache.tensor.run_job(job);
            });
        }
        for (auto& thread : threads) thread.join();
        cache.tensor.end_write();
        for (std::size_t i = 0; i < cells.size(); ++i) cache.model.write_row(cells[i], &rows[i * 1024]);
        cache.expect_sound(true);
        cache.tracker.on_mask(static_cast<std::uint64_t>(graph), MaskView{}, 0, 1, 512, graph * 512 + 512);
    }
    cache.tensor.begin_write(std::vector<std::int64_t>{1536}, {rows.data(), 4096, false});
    EXPECT_EQ(cache.tensor.n_jobs(), 8 * 4 + 1);  // eight pages of sixteen heads, one row
    for (int job = 0; job < cache.tensor.n_jobs(); ++job) cache.tensor.run_job(job);
    cache.tensor.end_write();
}

TEST(KvTensor, PageStatesChangeWhenTheWriteBegins) {
    KvDriver cache({});
    cache.decode_run(0, 200);
    const auto rows = cache.random_rows(1);
    const std::vector<std::int64_t> cells{200};
    cache.tracker.on_write(99, cells);
    cache.tensor.begin_write(cells, {rows.data(), 256, false});
    EXPECT_EQ(cache.states(), "cchh....");
    EXPECT_EQ(std::popcount(cache.page(3).written), 9);
    EXPECT_GT(cache.tensor.memory().hot, 2 * cache.row_bytes() * 64)
        << "frozen pages' rows are held until the end";
    for (int job = 0; job < cache.tensor.n_jobs(); ++job) cache.tensor.run_job(job);
    cache.tensor.end_write();
    EXPECT_EQ(cache.tensor.memory().hot, 2 * cache.row_bytes() * 64);
    cache.model.write_row(200, rows.data());
    cache.expect_sound(true);
}

TEST(KvTensor, RowsThatCannotBeEncodedStayExact) {
    for (const float value :
         {std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN(), 1e6f}) {
        KvDriver cache({.role = KvRole::value, .sinks = 0});
        cache.decode_run(0, 64);
        std::vector<float> rows = cache.random_rows(64);
        rows[10 * 64 + 3] = value;
        std::vector<std::int64_t> cells(64);
        std::iota(cells.begin(), cells.end(), 64);
        cache.tracker.on_write(++cache.epoch, cells);
        write_rows(cache.tensor, cells, {rows.data(), 256, false});
        for (std::size_t i = 0; i < 64; ++i) cache.model.write_row(cells[i], &rows[i * 64]);
        cache.sequences[0].insert(cells.begin(), cells.end());
        cache.expect_sound(true);
        cache.tracker.on_mask(cache.epoch, MaskView{}, 0, 1, 64, 128);
        cache.decode_run(128, 128);
        cache.decode_run(256, 1);
        cache.decode_run(257, 1);
        EXPECT_EQ(cache.states(), "ccchh...");
        EXPECT_EQ(cache.page(1).overlay, std::uint64_t{1} << 10);
    }
}

TEST(KvTensor, LargeFiniteValuesAreTried) {
    KvDriver cache({.sinks = 0});
    std::vector<float> rows = cache.random_rows(200, 3000.0f);
    std::vector<std::int64_t> cells(200);
    std::iota(cells.begin(), cells.end(), 0);
    cache.tracker.on_write(++cache.epoch, cells);
    write_rows(cache.tensor, cells, {rows.data(), 256, false});
    for (std::size_t i = 0; i < 200; ++i) cache.model.write_row(cells[i], &rows[i * 64]);
    cache.tracker.on_mask(cache.epoch, MaskView{}, 0, 1, 200, 200);
    cache.expect_sound(true);
    cache.decode_run(200, 1);
    EXPECT_EQ(cache.states(), "cchh....");
    EXPECT_EQ(cache.tensor.counters().freezes, 2u);
}

TEST(KvTensor, ManySinksAreNoReasonToFreeze) {
    KvDriver cache({.window = 8, .sinks = 60});
    cache.decode_run(0, 200);
    cache.decode_run(200, 1);
    EXPECT_EQ(cache.states(), "hcch....")
        << "a block beside sixty exact rows would be larger than the hot page";
}

TEST(KvTensor, RefusesImpossibleConfigurations) {
    PageArena arena;
    WindowTracker tracker({100, 1, 8, 0});
    const auto* q4 = find_cold_format("q4");
    const auto* set = &kernel_set("scalar");
    EXPECT_THROW(KvTensor({KvRole::key, 0, 1, 8, q4, set, &arena, &tracker}), Error);
    EXPECT_THROW(KvTensor({KvRole::key, 100, 0, 8, q4, set, &arena, &tracker}), Error);
    EXPECT_THROW(KvTensor({KvRole::key, 100, 1, 0, q4, set, &arena, &tracker}), Error);
    EXPECT_THROW(KvTensor({KvRole::key, 100, 1, 8, q4, nullptr, &arena, &tracker}), Error);
    EXPECT_THROW(KvTensor({KvRole::key, 100, 1, 8, q4, set, nullptr, &tracker}), Error);
    EXPECT_THROW(KvTensor({KvRole::key, 100, 1, 8, q4, set, &arena, nullptr}), Error);
    EXPECT_THROW(KvTensor({KvRole::key, 101, 1, 8, q4, set, &arena, &tracker}), Error);
    const ColdFormat own{"own", 4};
    EXPECT_THROW(KvTensor({KvRole::key, 100, 1, 8, &own, set, &arena, &tracker}), Error);
}

TEST(KvTensor, ClearReleasesEverything) {
    KvDriver cache({});
    cache.decode_run(0, 300);
    cache.decode_run(300, 1);
    EXPECT_GT(cache.arena.bytes_in_use(), 0u);
    cache.tensor.clear();
    cache.model.clear();
    cache.tracker.clear();
    EXPECT_EQ(cache.arena.bytes_in_use(), 0u);
    cache.expect_sound(false);
    cache.decode_run(0, 300);
    cache.decode_run(300, 1);
    EXPECT_EQ(cache.states(), "ccchh...");
}

}  // namespace
}  // namespace mixed_kv::test
