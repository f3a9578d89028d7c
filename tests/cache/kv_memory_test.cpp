#include <gtest/gtest.h>

#include <fstream>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "cache/kv_driver.h"
#include "mixed_kv/error.h"

namespace mixed_kv::test {
namespace {

// Of memory that the process asked for: pages of program files come and go as the system likes.
std::size_t resident_bytes() {
    std::ifstream rollup("/proc/self/smaps_rollup");
    for (std::string line; std::getline(rollup, line);) {
        if (line.rfind("Anonymous:", 0) == 0) return std::stoul(line.substr(10)) * 1024;
    }
    return 0;
}

TEST(KvMemory, AccountIsExact) {
    for (const KvRole role : {KvRole::key, KvRole::value}) {
        KvDriver cache({.role = role, .n_cells = 2000, .shape = {3, 40}, .window = 64});
        cache.decode_run(0, 700);
        for (std::int64_t i = 700; i < 900; ++i) {
            cache.decode({i % 7 == 0 ? i - 600 : i}, {0});
            const auto memory = cache.tensor.memory();
            // Sizes here are multiples of 64 bytes except overlay rows of 240 bytes.
            std::size_t overlay = 0;
            for (std::int64_t p = 0; p < 32; ++p) overlay += cache.page(p).overlay != 0 ? 64 : 0;
            ASSERT_GE(cache.arena.bytes_in_use(), memory.hot + memory.cold + memory.overlay);
            ASSERT_LE(cache.arena.bytes_in_use(), memory.hot + memory.cold + memory.overlay + overlay);
        }
        EXPECT_EQ(cache.tensor.memory().rows_written, 700 + 200 - 29);
        EXPECT_EQ(cache.tensor.memory().pinned, 0u);
        EXPECT_LT(cache.tensor.memory().bookkeeping, 8192u);
    }
}

// What users are promised: the pages of a small model's whole cache, measured from outside.
TEST(KvMemory, ResidentSizeIsTheClaim) {
    const std::int64_t n_cells = 2048;
    const HeadShape shape{2, 64};
    PageArena arena;
    WindowTracker tracker({n_cells, 1, 64, 4});
    std::vector<std::unique_ptr<KvTensor>> tensors;
    for (int i = 0; i < 12; ++i) {
        tensors.push_back(std::make_unique<KvTensor>(
            KvTensor::Config{i % 2 == 0 ? KvRole::key : KvRole::value, n_cells, 1, 128,
                             find_cold_format("q4"), &kernel_set("scalar"), &arena, &tracker}));
        ASSERT_TRUE(tensors.back()->set_head_shape(shape));
    }
    Random random(5);
    std::vector<float> rows(512 * 128);
    for (float& v : rows) v = random.normal();
    std::vector<std::int64_t> cells;
    const auto graph = [&](std::uint64_t epoch, std::int64_t first, std::int64_t n) {
        cells.resize(static_cast<std::size_t>(n));
        std::iota(cells.begin(), cells.end(), first);
        tracker.on_write(epoch, cells);
        for (auto& tensor : tensors) write_rows(*tensor, cells, {rows.data(), 512, false});
        tracker.on_mask(epoch, MaskView{}, 0, 1, n, first + n);
    };
    const std::size_t before = resident_bytes();
    std::uint64_t epoch = 0;
    for (std::int64_t first = 0; first < 1536; first += 512) graph(epoch++, first, 512);
    for (std::int64_t first = 1536; first < 2000; ++first) graph(epoch++, first, 1);
    const std::size_t after = resident_bytes();
    KvTensor::Memory sum;
    for (const auto& tensor : tensors) {
        const auto memory = tensor->memory();
        sum.hot += memory.hot;
        sum.cold += memory.cold;
        sum.overlay += memory.overlay;
        sum.bookkeeping += memory.bookkeeping;
    }
    const double f16 = 12.0 * 2000 * 256;
    const std::size_t pages = sum.hot + sum.cold + sum.overlay;
    EXPECT_EQ(arena.bytes_in_use(), pages);
    EXPECT_LE(arena.bytes_resident(), pages + 64 * 1024 + 8 * 4096);
    EXPECT_LE(static_cast<double>(arena.bytes_resident()), 0.42 * f16);
    RecordProperty("resident_permille_of_f16",
                   static_cast<int>(1000.0 * static_cast<double>(arena.bytes_resident()) / f16));
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
    EXPECT_LE(after - before, arena.bytes_resident() + sum.bookkeeping + 256 * 1024);
    EXPECT_GE(after - before + 64 * 1024, arena.bytes_in_use());
#else
    static_cast<void>(before), static_cast<void>(after);
#endif
}

TEST(KvMemory, SteadyGenerationAllocatesNothingInTheTensor) {
    KvDriver cache({.n_cells = 1024});
    cache.decode_run(0, 512);
    cache.decode_one_by_one(512, 5);
    const auto before = cache.tensor.memory().bookkeeping;
    cache.decode_one_by_one(517, 200);
    EXPECT_EQ(cache.tensor.memory().bookkeeping, before);
}

// The arena refuses at every possible point of every kind of operation: the tensor must stay whole.
TEST(KvMemory, RefusedMemoryLosesNothing) {
    int n_refused = 0;
    for (std::size_t room = 0; room < 40; ++room) {
        SCOPED_TRACE("room " + std::to_string(room * 1024));
        KvDriver cache({.n_cells = 600, .n_stream = 2, .window = 32, .seed = room + 1});
        cache.decode_run(0, 300);
        cache.decode_one_by_one(300, 3);
        cache.arena.trim();
        cache.model.expect_scarce_memory();
        cache.arena.set_limit(cache.arena.bytes_resident() + room * 1024);
        const auto rows = cache.random_rows(100);
        const auto halves = cache.random_fp16(200);
        for (int step = 0; step < 12; ++step) {
            std::vector<std::int64_t> cells;
            for (int i = 0; i < 100; ++i)
                cells.push_back(step % 3 == 0 ? cache.random.below(600) : 303 + (step * 100 + i) % 290);
            cache.tracker.on_write(++cache.epoch, cells);
            try {
                write_rows(cache.tensor, cells, {rows.data(), 256, false});
                for (std::size_t i = 0; i < cells.size(); ++i) cache.model.write_row(cells[i], &rows[i * 64]);
            } catch (const Error&) {
                ++n_refused;
                EXPECT_EQ(cache.tensor.n_jobs(), 0);
            }
            cache.expect_sound(true);
        }
        try {
            const std::size_t offset = 280 * cache.row_bytes() + 11;
            try {
                cache.tensor.write_bytes(offset, halves.data(), halves.size() * 2);
                cache.model.write_bytes(offset, halves.data(), halves.size() * 2);
                cache.expect_sound(false);
            } catch (const Error&) {  // pages before the refusal are done, which the model does not know
                ++n_refused;
                EXPECT_EQ(cache.arena.bytes_in_use(), cache.model.live_bytes());
                cache.tensor.clear();
                cache.model.clear();
                cache.expect_sound(false);
            }
            cache.tensor.copy_rows(cache.tensor, 0, 600, 600);
            cache.model.copy_rows(cache.model, 0, 600, 600);
            cache.expect_sound(false);
        } catch (const Error&) {
            ++n_refused;
        }
        // All storage is accounted for, whatever happened.
        EXPECT_EQ(cache.arena.bytes_in_use(), cache.model.live_bytes());
        cache.arena.set_limit(SIZE_MAX);
        cache.tensor.clear();
        EXPECT_EQ(cache.arena.blocks_in_use(), 0u);
    }
    EXPECT_GT(n_refused, 50);
}

TEST(KvMemory, TensorsGiveTheirPagesBack) {
    PageArena arena;
    {
        WindowTracker tracker({500, 1, 16, 4});
        KvTensor tensor(
            {KvRole::key, 500, 1, 64, find_cold_format("q8"), &kernel_set("scalar"), &arena, &tracker});
        tensor.set_head_shape({2, 32});
        const std::vector<fp16_t> rows(400 * 64, 0x3c00);
        tensor.write_bytes(0, rows.data(), rows.size() * 2);
        EXPECT_GT(arena.blocks_in_use(), 0u);
    }
    EXPECT_EQ(arena.blocks_in_use(), 0u);
    EXPECT_EQ(arena.bytes_in_use(), 0u);
}

}  // namespace
}  // namespace mixed_kv::test
