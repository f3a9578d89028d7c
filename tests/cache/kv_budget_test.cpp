#include <gtest/gtest.h>

#include <algorithm>
#include <climits>
#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "cache/kv_driver.h"

// Pages stepping down a ladder, each step held to the model: a row turns into what a narrower block makes of
// it, and into nothing else.
namespace mixed_kv::test {
namespace {

const std::vector<std::string> kLadder = {"q8", "q4", "q3"};

DriverSpec ladder_spec(KvRole role = KvRole::key) {
    DriverSpec spec;
    spec.role = role;
    spec.n_cells = 1024;
    spec.format = kLadder.front();
    spec.ladder = kLadder;
    spec.window = 32;
    return spec;
}

// Bits of each page's widest block, h for a hot page.
std::string rungs(const KvDriver& cache) {
    std::string text;
    const PageTable table = cache.tensor.pages(0);
    for (std::int64_t i = 0; i < table.n_pages; ++i) {
        const Page& page = table.pages[i];
        int bits = 0;
        for (int b = 0; b < page.n_blocks; ++b)
            bits = std::max(bits, cold_formats()[page.block(b).format].code_bits);
        text += page.state == PageState::hot ? "h" : bits == 0 ? "." : std::to_string(bits);
    }
    return text;
}

int step_to(KvDriver& cache, std::size_t bytes) {
    int n = 0;
    while (cache.tensor.step_down(bytes, 1) == 1) {
        cache.expect_sound(false);
        ++n;
    }
    return n;
}

TEST(KvBudget, NothingStepsDownWithoutNeed) {
    for (const KvRole role : {KvRole::key, KvRole::value}) {
        KvDriver cache(ladder_spec(role));
        cache.decode_run(0, 300);
        cache.decode_one_by_one(300, 200);
        EXPECT_EQ(rungs(cache), "hhhhhhhh........");
        EXPECT_EQ(cache.tensor.counters().steps, 0u);
        EXPECT_EQ(cache.tensor.page_bytes(), 8 * 64 * cache.row_bytes());
    }
}

TEST(KvBudget, StepsDownOldestFirstAsFarAsNeeded) {
    for (const KvRole role : {KvRole::key, KvRole::value}) {
        KvDriver cache(ladder_spec(role));
        cache.decode_run(0, 500);
        const std::size_t full = cache.tensor.page_bytes();
        step_to(cache, full - 1);
        EXPECT_EQ(rungs(cache), "8hhhhhhh........");
        EXPECT_EQ(cache.page(0).overlay, 0xfu) << "sinks stay";
        step_to(cache, full * 80 / 100);
        EXPECT_EQ(rungs(cache).substr(0, 2), "88");
        EXPECT_EQ(rungs(cache).substr(6, 2), "hh");
        step_to(cache, full * 48 / 100);
        EXPECT_EQ(rungs(cache).substr(0, 2), "44");
        EXPECT_EQ(rungs(cache).substr(6, 2), "8h");
        // The page of the window goes last, and then all the way.
        step_to(cache, 0);
        EXPECT_EQ(rungs(cache), "33333333........");
        EXPECT_EQ(cache.tensor.counters().steps, 7u * 3u + 1u);
        EXPECT_EQ(cache.tensor.counters().steps_again, 14u);
        EXPECT_EQ(cache.tensor.step_down(0, INT_MAX), 0) << "nothing is left to step down";
        // What is written then is exact.
        cache.decode_one_by_one(500, 12);
        EXPECT_EQ(rungs(cache), "33333333........");
        EXPECT_NE(cache.page(7).overlay, 0u);
    }
}

// As the plugin does: after each graph.
TEST(KvBudget, GenerationKeepsToWhatIsAllowed) {
    KvDriver cache(ladder_spec());
    const std::size_t page = 64 * cache.row_bytes(), allowed = 7 * page;
    cache.tensor.set_allowance({allowed, allowed + page, 3});
    std::uint64_t most = 0, steps = 0;
    for (std::int64_t cell = 0; cell < 1024; ++cell) {
        cache.decode({cell}, {0});
        cache.tensor.keep_allowance(1, {});
        ASSERT_LE(cache.tensor.page_bytes(), allowed + page) << cell;
        most = std::max(most, cache.tensor.counters().steps - steps);
        steps = cache.tensor.counters().steps;
        if (cell == 64 * 7 - 1) {
            EXPECT_EQ(steps, 0u) << "before memory asks for it";
        }
        if (HasFailure()) return;
    }
    EXPECT_LE(most, 2u) << "steps at one token";
    EXPECT_GT(cache.tensor.page_bytes(), allowed - page);
}

TEST(KvBudget, PromptsKeepToWhatIsAllowed) {
    KvDriver cache(ladder_spec(KvRole::value));
    const std::size_t page = 64 * cache.row_bytes(), allowed = 7 * page;
    cache.tensor.set_allowance({allowed, allowed + page, 0});
    for (std::int64_t cell = 0; cell < 1024; cell += 128) {
        cache.tracker.on_write(++cache.epoch, {});
        cache.decode_run(cell, 128);
        cache.tensor.keep_allowance(128, {});
        EXPECT_LE(cache.tensor.page_bytes(), allowed) << cell;
    }
}

// States that a host brings, at once and in pieces: exact while they fit, and then in the widest format that
// does.
TEST(KvBudget, RestoresKeepToWhatIsAllowed) {
    for (const std::size_t piece : {std::size_t{700}, std::size_t{50}}) {
        KvDriver cache(ladder_spec());
        const std::size_t page = 64 * cache.row_bytes(), allowed = 5 * page;
        cache.tensor.set_allowance({allowed, allowed + page, 0});
        const auto rows = cache.random_fp16(700);
        for (std::size_t at = 0; at < 700; at += piece) {
            const std::size_t n = std::min(piece, 700 - at);
            cache.tensor.write_bytes(at * cache.row_bytes(), rows.data() + at * cache.row_elements(),
                                     n * cache.row_bytes());
            EXPECT_LE(cache.tensor.page_bytes(), allowed);
            if (at + n <= 256) {
                EXPECT_EQ(cache.tensor.counters().steps + cache.tensor.counters().freezes, 0u) << "it fits";
            }
        }
        std::vector<fp16_t> read(rows.size());
        cache.tensor.read_bytes(0, read.data(), read.size() * sizeof(fp16_t));
        double error = 0, size = 0;
        for (std::size_t i = 0; i < rows.size(); ++i) {
            error += std::pow(fp16_to_fp32(read[i]) - fp16_to_fp32(rows[i]), 2);
            size += std::pow(fp16_to_fp32(rows[i]), 2);
        }
        EXPECT_LT(std::sqrt(error / size), 0.1) << piece;  // q4 of normal rows
        EXPECT_EQ(cache.arena.bytes_in_use(), cache.tensor.page_bytes());
        if (piece == 700) {
            EXPECT_EQ(cache.tensor.counters().steps_again, 0u) << "encoded once";
        }
    }
}

TEST(KvBudget, CopiesKeepToWhatIsAllowed) {
    DriverSpec spec = ladder_spec();
    spec.n_cells = 512;
    spec.n_stream = 3;
    KvDriver cache(spec);
    const std::size_t page = 64 * cache.row_bytes(), allowed = 10 * page;
    cache.decode_run(0, 500);
    cache.tensor.set_allowance({allowed, allowed + page, 0});
    cache.tensor.copy_rows(cache.tensor, 0, 512, 512);
    EXPECT_LE(cache.tensor.page_bytes(), allowed);
    cache.tensor.copy_rows(cache.tensor, 512, 1024, 512);
    EXPECT_LE(cache.tensor.page_bytes(), allowed);
    EXPECT_EQ(cache.arena.bytes_in_use(), cache.tensor.page_bytes());
}

// Steps with turns pending, rows written into cold pages, several blocks, memory that is refused in a step.
class KvBudgetProperties : public testing::TestWithParam<int> {};

TEST_P(KvBudgetProperties, EveryStepIsOneRounding) {
    Random random(static_cast<std::uint64_t>(GetParam()));
    DriverSpec spec = ladder_spec(random.below(2) == 0 ? KvRole::key : KvRole::value);
    const HeadShape shapes[] = {{1, 32}, {2, 32}, {3, 40}, {1, 64}, {4, 20}};
    spec.shape = shapes[random.below(5)];
    spec.n_cells = 256 + random.below(200);
    spec.seed = static_cast<std::uint64_t>(GetParam()) + 1000;
    KvDriver cache(spec);
    RotaryPairs pairs;
    pairs.n_pairs = spec.shape.head_dim / 2;
    const std::size_t full = static_cast<std::size_t>(spec.n_cells) * cache.row_bytes();
    std::int64_t cursor = 0;
    for (int step = 0; step < 60; ++step) {
        const int kind = random.below(10);
        if (kind < 5) {
            std::vector<std::int64_t> cells;
            for (int i = 1 + random.below(90); i > 0; --i) {
                if (random.below(40) == 0) cursor = random.below(static_cast<int>(spec.n_cells));
                cells.push_back(cursor);
                cursor = (cursor + 1) % spec.n_cells;
            }
            std::sort(cells.begin(), cells.end());
            cells.erase(std::unique(cells.begin(), cells.end()), cells.end());
            cache.decode(cells, std::vector<int>(cells.size(), random.below(3)));
        } else if (kind == 5 && spec.role == KvRole::key) {
            std::vector<std::uint32_t> kinds(static_cast<std::size_t>(spec.n_cells));
            const bool by_turns = random.below(2) == 0;
            for (std::size_t cell = 0; cell < kinds.size(); ++cell) {
                const Page& page = cache.page(static_cast<std::int64_t>(cell) / 64);
                if ((page.written >> (cell % 64) & 1) == 0) continue;
                kinds[cell] = by_turns ? static_cast<std::uint32_t>(cell % 5 % 4) : 1;
            }
            cache.shift(kinds, pairs);
        } else if (kind == 6) {
            const auto n = static_cast<std::size_t>(1 + random.below(100));
            const auto first = static_cast<std::size_t>(random.below(static_cast<int>(spec.n_cells)));
            const std::size_t fits = std::min(n, static_cast<std::size_t>(spec.n_cells) - first);
            cache.write_bytes(first * cache.row_bytes(), cache.random_fp16(fits), 0,
                              fits * cache.row_bytes());
        } else {
            const bool scarce = random.below(4) == 0;
            const std::size_t before = cache.tensor.page_bytes();
            if (scarce) {
                cache.model.expect_scarce_memory();
                cache.arena.set_limit(cache.arena.bytes_resident() +
                                      static_cast<std::size_t>(random.below(8192)));
            }
            step_to(cache, full * static_cast<std::size_t>(random.below(100)) / 100);
            cache.arena.set_limit(SIZE_MAX);
            EXPECT_LE(cache.tensor.page_bytes(), before);
        }
        EXPECT_EQ(cache.tensor.page_bytes(), cache.arena.bytes_in_use());
        if (HasFailure()) {
            ADD_FAILURE() << "seed " << GetParam() << " step " << step;
            return;
        }
    }
}

INSTANTIATE_TEST_SUITE_P(Seeds, KvBudgetProperties, testing::Range(1, 41));

}  // namespace
}  // namespace mixed_kv::test
