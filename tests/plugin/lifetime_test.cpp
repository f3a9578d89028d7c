// Over many contexts: memory does not grow, results do not change.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <fstream>

#include "plugin_test.h"

using namespace mixed_kv::test;

namespace {

long resident_kib() {
    std::ifstream file("/proc/self/status");
    for (std::string line; std::getline(file, line);) {
        if (line.rfind("VmRSS:", 0) == 0) return std::stol(line.substr(6));
    }
    return 0;
}

}  // namespace

TEST(Lifetime, MemoryIsFlatOverContexts) {
    const Model model(small_model(), CacheOwner::kPlugin);
    const auto tokens = random_tokens(300, model.n_vocab(), 5);
    long after_warm_up = 0;
    const int cycles = 200;
    for (int cycle = 0; cycle < cycles; ++cycle) {
        ContextOptions options;
        options.n_ctx = 512;
        options.n_ubatch = 128;
        Context context(model, options);
        context.prefill(tokens);
        if (cycle == 20) after_warm_up = resident_kib();
    }
    const mixed_kv_counters counters = [] {
        mixed_kv_counters c;
        plugin_api().counters(&c);
        return c;
    }();
    EXPECT_EQ(counters.n_caches, 0u);
    EXPECT_GT(counters.freezes, 0u);
    // 180 cycles hold about 100 MiB of cache in total; a leak of one page per cycle would show.
    EXPECT_LT(resident_kib() - after_warm_up, 2048) << "KiB over " << cycles - 20 << " contexts";
}

TEST(Lifetime, OutputIsBitIdenticalFromRunToRun) {
    const Model model(small_model(), CacheOwner::kPlugin);
    const auto tokens = random_tokens(400, model.n_vocab(), 6);
    for (int threads : {1, 2, 3}) {
        SCOPED_TRACE(threads);
        const auto run = [&] {
            ContextOptions options;
            options.n_threads = threads;
            options.n_ubatch = 64;
            Context context(model, options);
            Logits logits = context.decode(tokens);
            context.generate(7, 400, 40, 0, &logits);
            return logits;
        };
        const Logits first = run();
        for (int repeat = 0; repeat < 3; ++repeat) {
            const Logits again = run();
            ASSERT_EQ(first.values.size(), again.values.size());
            EXPECT_EQ(std::memcmp(first.values.data(), again.values.data(), first.values.size() * sizeof(float)), 0);
        }
    }
}

TEST(Lifetime, ManyContextsAtOnce) {
    const Model model(small_model(), CacheOwner::kPlugin);
    const auto tokens = random_tokens(200, model.n_vocab(), 8);
    ContextOptions options;
    options.n_ctx = 512;
    Context alone(model, options);
    const Logits expected = alone.decode(tokens);
    std::vector<std::unique_ptr<Context>> contexts;
    for (int i = 0; i < 8; ++i) contexts.push_back(std::make_unique<Context>(model, options));
    for (std::size_t i = 0; i < tokens.size(); i += 50) {
        for (auto& context : contexts) {
            const Logits part = context->decode({tokens.begin() + i, tokens.begin() + i + 50}, llama_pos(i));
            // Other batch sizes may round differently; another context's rows would be far off.
            for (std::size_t r = 0; r < part.n_rows(); ++r) EXPECT_EQ(part.top(r), expected.top(i + r));
        }
    }
}
