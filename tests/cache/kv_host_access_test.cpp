#include <gtest/gtest.h>

#include <sys/mman.h>

#include <bit>
#include <cstring>
#include <numeric>
#include <vector>

#include "cache/kv_driver.h"
#include "mixed_kv/error.h"

namespace mixed_kv::test {
namespace {

// Zeroed anonymous memory, as the plugin reserves it.
struct Reservation {
    explicit Reservation(std::size_t n)
        : bytes(n),
          base(static_cast<std::byte*>(mmap(nullptr, n, PROT_READ | PROT_WRITE,
                                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0))) {}
    ~Reservation() { munmap(base, bytes); }
    std::size_t bytes;
    std::byte* base;
};

TEST(KvHostAccess, RestoreFreezesAsItGoes) {
    for (const std::size_t piece :
         {std::size_t{1} << 30, std::size_t{10007}, std::size_t{333}, std::size_t{65536}}) {
        KvDriver cache({.n_cells = 1024, .window = 64, .sinks = 4});
        const auto rows = cache.random_fp16(900);
        const std::size_t offset = 10 * cache.row_bytes(), size = rows.size() * 2;
        std::size_t peak = 0;
        for (std::size_t at = 0; at < size; at += piece) {
            const std::size_t n = std::min(piece, size - at);
            cache.tensor.write_bytes(offset + at, reinterpret_cast<const std::byte*>(rows.data()) + at, n);
            cache.model.write_bytes(offset + at, reinterpret_cast<const std::byte*>(rows.data()) + at, n);
            peak = std::max(peak, cache.tensor.memory().hot);
            if (piece >= 10007 || at % 50 == 0) cache.expect_sound(false);
        }
        cache.expect_sound(false);
        // Cells 10 .. 909: 13 groups of 64 rows, whose borders are not those of pages; four sinks; the last
        // 64 rows are protected, and four that fill no group are exact, too.
        EXPECT_EQ(cache.states(), "cccccccccccccch.");
        EXPECT_EQ(cache.page(0).overlay, 0xfu << 10);
        EXPECT_EQ(cache.page(0).written, ~std::uint64_t{0} << 10);
        EXPECT_EQ(cache.page(1).n_blocks, 2);
        EXPECT_EQ(cache.page(1).first.users, cache.page(0).first.users);
        EXPECT_EQ(std::popcount(cache.page(13).overlay), 54);
        EXPECT_EQ(cache.tensor.counters().freezes, 13u);
        EXPECT_LE(peak, 5 * 64 * cache.row_bytes());
    }
}

TEST(KvHostAccess, RestoredSinksStayExact) {
    KvDriver cache({.n_cells = 1024, .window = 64, .sinks = 4});
    const auto rows = cache.random_fp16(640);
    cache.write_bytes(0, rows, 0, rows.size() * 2);
    EXPECT_EQ(cache.states(), "ccccccccch......");
    EXPECT_EQ(cache.page(0).overlay, 0xfu);
    EXPECT_EQ(cache.page(1).overlay, 0u);
}

TEST(KvHostAccess, PartsOfRowsInEveryState) {
    KvDriver cache({.n_cells = 300, .window = 16, .sinks = 3});
    cache.decode_run(0, 200);
    cache.decode_run(200, 20);
    cache.decode({70, 75}, {0, 0});
    ASSERT_EQ(cache.states(), "ccch.");
    for (int round = 0; round < 300; ++round) {
        const std::size_t all = 300 * cache.row_bytes();
        const auto offset = static_cast<std::size_t>(cache.random.below(static_cast<int>(all)));
        const auto size = static_cast<std::size_t>(1 + cache.random.below(round % 10 == 0 ? 4000 : 90));
        const auto data = cache.random_fp16(64);
        cache.write_bytes(offset, data, 1, std::min({size, all - offset, data.size() * 2 - 1}));
    }
    std::vector<std::byte> whole(300 * cache.row_bytes());
    cache.tensor.read_bytes(0, whole.data(), whole.size());
    for (int round = 0; round < 300; ++round) {
        const auto offset = static_cast<std::size_t>(cache.random.below(static_cast<int>(whole.size())));
        const auto size =
            static_cast<std::size_t>(cache.random.below(static_cast<int>(whole.size() - offset)));
        std::vector<std::byte> part(size + 3, std::byte{0xa5});
        cache.tensor.read_bytes(offset, part.data() + 1, size);
        ASSERT_EQ(std::memcmp(part.data() + 1, whole.data() + offset, size), 0);
        ASSERT_EQ(part[0], std::byte{0xa5});
        ASSERT_EQ(part[size + 1], std::byte{0xa5});
    }
}

// A write that covers all rows of a block, the first and the last one in part, leaves no block behind.
TEST(KvHostAccess, AllRowsOfABlockInPart) {
    for (const std::size_t odd : {std::size_t{1}, std::size_t{6}}) {
        KvDriver cache({.n_cells = 256, .window = 16, .sinks = 0});
        cache.decode_run(0, 200);
        cache.decode_run(200, 20);
        ASSERT_EQ(cache.states(), "cchh");
        const auto data = cache.random_fp16(64);
        cache.write_bytes(64 * cache.row_bytes() + odd, data, 0, 64 * cache.row_bytes() - 2 * odd);
        EXPECT_EQ(cache.states(), "chhh");
        cache.expect_sound(false);
    }
}

TEST(KvHostAccess, RangesBeyondTheEndAreRefused) {
    KvDriver cache({.n_cells = 100});
    std::vector<std::byte> data(200);
    const std::size_t all = 100 * cache.row_bytes();
    EXPECT_THROW(cache.tensor.read_bytes(all, data.data(), 1), Error);
    EXPECT_THROW(cache.tensor.write_bytes(all - 100, data.data(), 101), Error);
    EXPECT_THROW(cache.tensor.write_bytes(SIZE_MAX, data.data(), 2), Error);
    EXPECT_THROW(cache.tensor.fill_bytes(1, 0, all), Error);
    EXPECT_THROW(cache.tensor.read_rows(99, 2, reinterpret_cast<fp16_t*>(data.data())), Error);
    EXPECT_THROW(cache.tensor.read_rows(-1, 1, reinterpret_cast<fp16_t*>(data.data())), Error);
    EXPECT_THROW(cache.tensor.copy_rows(cache.tensor, 50, 60, 41), Error);
    cache.tensor.write_bytes(all, data.data(), 0);
    cache.expect_sound(false);
}

TEST(KvHostAccess, ZeroReleasesPages) {
    KvDriver cache({.n_cells = 500, .window = 32});
    const std::size_t all = 500 * cache.row_bytes();
    for (const std::size_t piece : {all, std::size_t{4096}, std::size_t{777}}) {
        cache.decode_run(0, 450);
        cache.decode_run(450, 1);
        for (std::size_t at = 0; at < all; at += piece) {
            cache.tensor.fill_bytes(at, 0, std::min(piece, all - at));
            cache.model.fill_bytes(at, 0, std::min(piece, all - at));
            if (piece > 1000) cache.expect_sound(false);
        }
        cache.expect_sound(false);
        EXPECT_EQ(cache.states(), "........") << "in pieces of " << piece;
        EXPECT_EQ(cache.arena.bytes_in_use(), 0u);
        cache.sequences[0].clear();
    }
    cache.decode_run(0, 450);
    cache.decode_run(450, 1);
    cache.tensor.fill_bytes(1000, 0x3c, 9001);  // 1.06 nearly everywhere
    cache.model.fill_bytes(1000, 0x3c, 9001);
    cache.expect_sound(false);
    cache.tensor.fill_bytes(3000, 0, 5001);
    cache.model.fill_bytes(3000, 0, 5001);
    cache.expect_sound(false);
}

TEST(KvHostAccess, StreamCopiesCloneBlocks) {
    KvDriver cache({.n_cells = 400, .n_stream = 3, .window = 32});
    cache.decode_run(0, 300);
    cache.decode_run(300, 1);
    cache.decode({5, 70}, {0, 0});
    const std::string states = cache.states();
    EXPECT_EQ(states, "cccch..");
    const auto freezes = cache.tensor.counters().freezes;
    for (const int stream : {1, 2}) {
        cache.tensor.copy_rows(cache.tensor, 0, stream * 400, 400);
        cache.model.copy_rows(cache.model, 0, stream * 400, 400);
        cache.expect_sound(false);
        EXPECT_EQ(cache.states(stream), states);
        for (std::int64_t p = 0; p < 3; ++p) {
            EXPECT_EQ(cache.page(p, stream).overlay, cache.page(p).overlay);
            EXPECT_EQ(std::memcmp(cache.page(p, stream).first.data, cache.page(p).first.data,
                                  cache.tensor.layout().block_bytes * 2),
                      0);
        }
        EXPECT_EQ(cache.tracker.n_window_cells(stream), cache.tracker.n_window_cells(0));
        EXPECT_EQ(cache.tracker.sink_cells(stream, 0), cache.tracker.sink_cells(0, 0));
    }
    EXPECT_EQ(cache.tensor.counters().freezes, freezes);
}

TEST(KvHostAccess, UnalignedAndOverlappingCopies) {
    KvDriver cache({.n_cells = 400, .window = 32});
    cache.decode_run(0, 300);
    cache.decode_run(300, 1);
    const std::int64_t moves[][3] = {{0, 64, 128}, {64, 0, 128},    {0, 7, 200},
                                     {13, 0, 250}, {200, 201, 100}, {5, 5, 50}};
    for (const auto& move : moves) {
        cache.tensor.copy_rows(cache.tensor, move[0], move[1], move[2]);
        cache.model.copy_rows(cache.model, move[0], move[1], move[2]);
        cache.expect_sound(false);
    }
}

// K and V, and all layers, share a tracker. What it knows moves once, however many tensors do, also where a
// second time would move it further.
TEST(KvHostAccess, ATrackerSeesEveryCopyOnce) {
    KvDriver cache({.n_cells = 400, .window = 32});
    KvTensor::Config config = cache.tensor.config();
    KvTensor second(config), third(config);
    for (KvTensor* tensor : {&second, &third}) ASSERT_TRUE(tensor->set_head_shape(cache.spec.shape));
    WindowReference reference({400, 1, 32, 4});
    const auto decode = [&](std::int64_t first, std::int64_t n) {
        std::vector<std::int64_t> cells;
        for (std::int64_t cell = first; cell < first + n; ++cell) cells.push_back(cell);
        cache.decode_run(first, n);
        reference.on_write(cells);
        std::vector<std::vector<std::set<std::int64_t>>> visible(1);
        for (const std::int64_t cell : cells) {
            visible[0].emplace_back();
            for (std::int64_t i = 0; i <= cell; ++i) visible[0].back().insert(i);
        }
        reference.on_mask(visible, 0, WindowReference::Tokens::known);
    };
    decode(0, 250);
    decode(250, 1);
    const std::int64_t moves[][3] = {{0, 7, 200}, {0, 7, 200}, {13, 0, 250}, {200, 201, 100}};
    for (const auto& [from, to, n] : moves) {
        for (KvTensor* tensor : {&cache.tensor, &second, &third}) tensor->copy_rows(*tensor, from, to, n);
        reference.on_copy(from, to, n);
        EXPECT_EQ(reference.difference(cache.tracker), "") << from << " to " << to;
    }
}

TEST(KvHostAccess, CopiesBetweenTensorsOfDifferentFormats) {
    KvDriver q4({.n_cells = 300, .window = 16}), f16({.n_cells = 200, .format = "f16"}),
        q8({.n_cells = 300, .format = "q8", .window = 16});
    q4.decode_run(0, 200);
    q4.decode_run(200, 1);
    f16.tensor.copy_rows(q4.tensor, 3, 0, 190);
    f16.model.copy_rows(q4.model, 3, 0, 190);
    f16.expect_sound(false);
    q8.tensor.copy_rows(q4.tensor, 0, 0, 201);
    q8.model.copy_rows(q4.model, 0, 0, 201);
    q8.expect_sound(false);
    EXPECT_EQ(q8.states(), "hhhh.");
    q8.decode({201}, {0});
    EXPECT_EQ(q8.states(), "hhhh.") << "what q4 has rounded is not rounded again";
    KvDriver other({.shape = {1, 40}});
    EXPECT_THROW(other.tensor.copy_rows(q4.tensor, 0, 0, 1), Error);
}

TEST(KvHostAccess, PinnedTensorsArePlainMemory) {
    KvDriver cache({.n_cells = 400, .n_stream = 2, .window = 32});
    cache.decode_run(0, 300);
    cache.decode_run(300, 1);
    Reservation memory(800 * cache.row_bytes());
    cache.tensor.pin(memory.base);
    cache.expect_sound(false);
    EXPECT_TRUE(cache.tensor.pinned());
    EXPECT_EQ(cache.states(), "ppppppp");
    EXPECT_EQ(cache.arena.bytes_in_use(), 0u);
    const auto same = [&] {
        return std::memcmp(memory.base, cache.model.rows().data(), cache.model.rows().size() * 2) == 0;
    };
    EXPECT_TRUE(same());
    cache.decode_run(301, 50);
    cache.decode({3, 380}, {0, 0});
    EXPECT_TRUE(same());
    const auto data = cache.random_fp16(100);
    cache.write_bytes(777, data, 0, 5001);
    cache.tensor.copy_rows(cache.tensor, 0, 401, 300);
    cache.model.copy_rows(cache.model, 0, 401, 300);
    cache.expect_sound(false);
    EXPECT_TRUE(same());
    EXPECT_NEAR(static_cast<double>(cache.tensor.memory().pinned),
                701.0 * static_cast<double>(cache.row_bytes()), 20e3);
    EXPECT_TRUE(cache.tensor.set_head_shape({2, 32}));
    cache.tensor.clear();
    EXPECT_EQ(cache.tensor.memory().pinned, 0u);
    cache.model.clear();
    cache.expect_sound(false);
    EXPECT_TRUE(same());
}

}  // namespace
}  // namespace mixed_kv::test
