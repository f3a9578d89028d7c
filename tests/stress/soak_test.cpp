// Long use, compressed: contexts that come and go by the thousand, and one that serves without end.
#include <gtest/gtest.h>

#include <malloc.h>

#include <algorithm>
#include <cstdio>
#include <map>

#include "plugin_test.h"
#include "process_memory.h"

using namespace mixed_kv::test;

namespace {

// glibc's own caches are returned before each look, and the driver's copy of the log is dropped.
double resident_kib() {
    clear_log();
    malloc_trim(0);
    return double(resident_bytes()) / 1024;
}

ContextOptions options() {
    ContextOptions o;
    o.n_ctx = 512;
    o.n_ubatch = 64;
    o.n_threads = 1;
    return o;
}

}  // namespace

TEST(Soak, AThousandContexts) {
    const Model model(small_model(), CacheOwner::kPlugin);
    const auto tokens = random_tokens(200, model.n_vocab(), 5);
    std::map<int, double> at;
    for (int cycle = 0; cycle < 1000; ++cycle) {
        {
            Context context(model, options());
            if (cycle % 4 == 0) context.prefill(tokens);
        }
        if (cycle % 100 == 99) at[cycle + 1] = resident_kib();
    }
    for (const auto& [cycle, kib] : at) std::printf("after %4d contexts: %.0f KiB\n", cycle, kib);
    mixed_kv_counters counters;
    plugin_api().counters(&counters);
    EXPECT_EQ(counters.n_caches, 0u);
    EXPECT_LT(at[1000], at[200] + 1024);  // a page of 16 KiB leaked per context would be 12800 KiB
}

// A server's day in a few minutes: four slots take turns with prompts, answers, regenerated answers, context
// shifts, saved and restored states, on one unified cache that is always nearly full.
TEST(Soak, ServingWithoutEnd) {
    const Model model(small_model(), CacheOwner::kPlugin);
    ContextOptions o = options();
    o.n_seq_max = 4;
    o.kv_unified = true;
    o.n_ctx = 1024;
    Context context(model, o);
    std::uint64_t state = 42;
    const auto below = [&](int n) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        return int((state >> 33) % std::uint64_t(n));
    };
    std::vector<int> length(4);
    std::map<int, std::vector<std::uint8_t>> saved;
    std::map<int, int> saved_length;
    std::map<int, double> at;
    constexpr int kTurns = 4000;
    std::size_t n_tokens = 0;
    for (int turn = 1; turn <= kTurns; ++turn) {
        const int s = below(4), n = 1 + below(30);
        if (length[std::size_t(s)] + n > 250) {
            const int keep = 4, drop = 100;
            context.remove(s, keep, keep + drop);
            context.shift(s, keep + drop, -1, -drop);
            length[std::size_t(s)] -= drop;
        }
        const Logits logits = context.prefill(
            random_tokens(std::size_t(n), model.n_vocab(), std::uint64_t(turn)), length[std::size_t(s)], s);
        ASSERT_TRUE(std::all_of(logits.values.begin(), logits.values.end(), [](float x) { return x == x; }))
            << turn;
        length[std::size_t(s)] += n;
        n_tokens += std::size_t(n);
        if (below(3) == 0) {
            const int regenerated = std::min(length[std::size_t(s)] - 1, below(40));
            length[std::size_t(s)] -= regenerated;
            context.remove(s, length[std::size_t(s)], -1);
        }
        if (below(20) == 0) {
            saved[s] = context.save_sequence(s);
            saved_length[s] = length[std::size_t(s)];
        }
        if (below(20) == 0 && saved.count(s) != 0) {
            context.restore_sequence(s, saved[s]);
            length[std::size_t(s)] = saved_length[s];
        }
        ASSERT_EQ(context.last_position(s), length[std::size_t(s)] - 1) << turn;
        if (turn % 500 == 0) at[turn] = resident_kib();
    }
    mixed_kv_counters counters;
    plugin_api().counters(&counters);
    for (const auto& [turn, kib] : at) std::printf("after %4d turns: %.0f KiB\n", turn, kib);
    std::printf("%zu tokens, %llu pages frozen, %llu encoded again\n", n_tokens,
                static_cast<unsigned long long>(counters.freezes),
                static_cast<unsigned long long>(counters.reencodes));
    EXPECT_GT(counters.freezes, 100u);
    EXPECT_LT(at[kTurns], at[500] + 2048);
}
