#include <gtest/gtest.h>

#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <map>
#include <string>
#include <vector>

#include "mixed_kv/error.h"
#include "mixed_kv/page_arena.h"
#include "support/random.h"

namespace mixed_kv::test {
namespace {

struct Block {
    std::byte* data;
    std::size_t bytes;
    unsigned char pattern;
};

Block take(PageArena& arena, std::size_t bytes, unsigned char pattern) {
    std::byte* data = arena.allocate(bytes);
    std::memset(data, pattern, bytes);
    return {data, bytes, pattern};
}

bool intact(const Block& block) {
    return std::all_of(block.data, block.data + block.bytes,
                       [&](std::byte b) { return std::to_integer<unsigned char>(b) == block.pattern; });
}

// Resident bytes of the 4 KiB units from the lowest to the highest address of any block ever seen; gaps that
// are not ours count as absent.
std::size_t resident(const std::map<std::uintptr_t, std::uintptr_t>& ranges) {
    std::size_t bytes = 0;
    for (const auto& [begin, end] : ranges) {
        for (std::uintptr_t unit = begin; unit < end; unit += 4096) {
            unsigned char state = 0;
            if (mincore(reinterpret_cast<void*>(unit), 4096, &state) == 0)
                bytes += (state & 1) != 0 ? 4096 : 0;
        }
    }
    return bytes;
}

TEST(PageArena, BlocksAreAlignedAndApart) {
    PageArena arena;
    Random random(7);
    std::vector<Block> live;
    std::size_t in_use = 0;
    const std::size_t sizes[] = {1, 64, 80, 256, 2304, 4096, 9216, 32768, 131072};
    for (int step = 0; step < 20000; ++step) {
        if (live.empty() || (random.below(5) < 3 && in_use < (8u << 20))) {
            live.push_back(
                take(arena, sizes[random.below(9)], static_cast<unsigned char>(random.below(256))));
            ASSERT_EQ(reinterpret_cast<std::uintptr_t>(live.back().data) % 64, 0u);
            in_use += (live.back().bytes + 63) / 64 * 64;
        } else {
            const auto i = static_cast<std::size_t>(random.below(static_cast<int>(live.size())));
            ASSERT_TRUE(intact(live[i])) << step;
            arena.release(live[i].data, live[i].bytes);
            in_use -= (live[i].bytes + 63) / 64 * 64;
            live[i] = live.back();
            live.pop_back();
        }
        ASSERT_EQ(arena.bytes_in_use(), in_use);
        ASSERT_EQ(arena.blocks_in_use(), live.size());
        ASSERT_GE(arena.bytes_resident(), in_use);
    }
    for (const Block& block : live) {
        ASSERT_TRUE(intact(block));
        arena.release(block.data, block.bytes);
    }
    EXPECT_EQ(arena.bytes_in_use(), 0u);
    arena.trim();
    EXPECT_EQ(arena.bytes_resident(), 0u);
}

TEST(PageArena, ResidentMemoryIsWhatItSays) {
    PageArena arena;
    std::map<std::uintptr_t, std::uintptr_t> ranges;  // whole units of blocks
    std::vector<Block> live;
    Random random(3);
    const std::size_t sizes[] = {512, 9216, 32768};
    const auto grow = [&](std::size_t until) {
        while (arena.bytes_in_use() < until) {
            live.push_back(take(arena, sizes[random.below(3)], 1));
            const auto begin = reinterpret_cast<std::uintptr_t>(live.back().data);
            for (std::uintptr_t unit = begin / 4096 * 4096; unit < begin + live.back().bytes; unit += 4096) {
                ranges[unit] = unit + 4096;
            }
        }
    };
    const auto shrink = [&](std::size_t until) {
        while (arena.bytes_in_use() > until) {
            const auto i = static_cast<std::size_t>(random.below(static_cast<int>(live.size())));
            arena.release(live[i].data, live[i].bytes);
            live[i] = live.back();
            live.pop_back();
        }
    };
    for (const std::size_t target :
         {std::size_t{2} << 20, std::size_t{200} << 10, std::size_t{6} << 20, std::size_t{1} << 20}) {
        target > arena.bytes_in_use() ? grow(target) : shrink(target);
        const std::size_t measured = resident(ranges);
        EXPECT_EQ(measured, arena.bytes_resident()) << target;
    }
    // Large blocks leave no more than the reserve and their odd units behind.
    PageArena pages;
    std::vector<Block> hot;
    for (int i = 0; i < 64; ++i) hot.push_back(take(pages, 32768, 1));
    EXPECT_EQ(pages.bytes_resident(), 64u * 32768);
    for (const Block& block : hot) pages.release(block.data, block.bytes);
    EXPECT_LE(pages.bytes_resident(), 96u * 1024);
}

std::size_t huge_bytes() {
    std::ifstream rollup("/proc/self/smaps_rollup");
    for (std::string line; std::getline(rollup, line);) {
        if (line.rfind("AnonHugePages:", 0) == 0) return std::stoul(line.substr(14)) * 1024;
    }
    return 0;
}

// Whether this system makes a huge page of 2 MiB when asked to.
bool system_joins_pages() {
    std::ifstream file("/sys/kernel/mm/transparent_hugepage/enabled");
    std::string state;
    if (!std::getline(file, state) || state.find("[never]") != std::string::npos) return false;
    constexpr std::size_t kHuge = 2 << 20;
    void* p = mmap(nullptr, 2 * kHuge, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) return false;
    void* at = reinterpret_cast<void*>((reinterpret_cast<std::uintptr_t>(p) + kHuge - 1) / kHuge * kHuge);
    std::memset(at, 1, kHuge);
    const bool joined = madvise(at, kHuge, MADV_HUGEPAGE) == 0 && madvise(at, kHuge, 25) == 0;
    munmap(p, 2 * kHuge);
    return joined;
}

// Pages that last: huge pages where 2 MiB are used in full, and never a byte more than without them.
TEST(PageArena, HugePagesHoldNothingThatIsNotUsed) {
    const std::size_t block = 36864;  // 2 MiB are no multiple of it
    PageArena arena;
    arena.expect_lasting(block);
    const std::size_t before = huge_bytes();
    std::map<std::uintptr_t, std::uintptr_t> ranges;
    std::vector<Block> live;
    for (int i = 0; i < 1200; ++i) {
        live.push_back(take(arena, block, static_cast<unsigned char>(i)));
        const auto begin = reinterpret_cast<std::uintptr_t>(live.back().data);
        for (std::uintptr_t unit = begin / 4096 * 4096; unit < begin + block; unit += 4096)
            ranges[unit] = unit + 4096;
        ASSERT_EQ(arena.bytes_resident(), 4096 * ranges.size()) << i;
    }
    EXPECT_EQ(resident(ranges), arena.bytes_resident());
    EXPECT_LE(arena.bytes_resident(), arena.bytes_in_use() + 64 * 1024);
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
    // All but the first chunks, which are smaller, and what is beyond the last whole 2 MiB of the others.
    if (system_joins_pages()) {
        EXPECT_GE(huge_bytes() - before, arena.bytes_in_use() / 2);
    }
#else
    static_cast<void>(before);
#endif
    for (const Block& b : live) ASSERT_TRUE(intact(b));

    Random random(11);
    while (live.size() > 300) {
        const auto i = static_cast<std::size_t>(random.below(static_cast<int>(live.size())));
        arena.release(live[i].data, block);
        live[i] = live.back();
        live.pop_back();
    }
    EXPECT_LE(resident(ranges), arena.bytes_resident());  // emptied chunks are no longer mapped
    EXPECT_LE(arena.bytes_resident(), arena.bytes_in_use() * 5 / 4 + (1 << 20));
    for (int i = 0; i < 900; ++i) live.push_back(take(arena, block, static_cast<unsigned char>(i)));
    for (const Block& b : live) ASSERT_TRUE(intact(b));
    arena.release_all();
    EXPECT_EQ(arena.bytes_resident(), 0u);
    EXPECT_LE(huge_bytes(), before);
}

TEST(PageArena, SmallCachesHaveLittleSlack) {
    // Twelve tensors of a small model at 2000 cells: 30 cold pages, 2 hot ones, one overlay of sinks.
    PageArena arena;
    for (int tensor = 0; tensor < 12; ++tensor) {
        for (int page = 0; page < 30; ++page) take(arena, 4608, 1);
        for (int page = 0; page < 2; ++page) take(arena, 16384, 1);
        take(arena, 1024, 1);
    }
    EXPECT_LE(arena.bytes_resident(), arena.bytes_in_use() * 101 / 100 + 3 * 4096);
}

TEST(PageArena, LimitRefusesAndRecovers) {
    PageArena arena(256 * 1024);
    std::vector<std::byte*> blocks;
    for (int i = 0; i < 8; ++i) blocks.push_back(arena.allocate(32 * 1024));
    EXPECT_THROW(arena.allocate(64), Error);
    EXPECT_EQ(arena.blocks_in_use(), 8u);
    arena.release(blocks.back(), 32 * 1024);
    blocks.pop_back();
    std::byte* small = arena.allocate(64);  // what was kept for the other class is given back for it
    EXPECT_NE(small, nullptr);
    EXPECT_THROW(arena.allocate(32 * 1024), Error);
    EXPECT_LE(arena.bytes_resident(), 256u * 1024);
    arena.release(small, 64);
    EXPECT_NO_THROW(blocks.push_back(arena.allocate(32 * 1024)));
}

TEST(PageArena, ReleaseAll) {
    PageArena arena;
    for (int i = 0; i < 100; ++i) take(arena, 5000, 1);
    arena.release_all();
    EXPECT_EQ(arena.bytes_in_use(), 0u);
    EXPECT_EQ(arena.bytes_resident(), 0u);
    EXPECT_EQ(arena.blocks_in_use(), 0u);
    EXPECT_TRUE(intact(take(arena, 5000, 2)));
}

TEST(PageArena, MappingsDoNotPileUp) {
    const auto mappings = [] {
        std::ifstream maps("/proc/self/maps");
        return std::count(std::istreambuf_iterator<char>(maps), {}, '\n');
    };
    PageArena arena;
    const auto before = mappings();
    for (int cycle = 0; cycle < 200; ++cycle) {
        std::vector<Block> blocks;
        for (int i = 0; i < 300; ++i) blocks.push_back(take(arena, 9216, 1));
        for (const Block& block : blocks) arena.release(block.data, block.bytes);
    }
    EXPECT_LE(mappings(), before + 16);
}

}  // namespace
}  // namespace mixed_kv::test
