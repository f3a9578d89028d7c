// Over many contexts: memory does not grow, results do not change.
#include <gtest/gtest.h>

#include <malloc.h>

#include <algorithm>
#include <cstdio>
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

// Memory of the process after n contexts, beyond that after 20. glibc's own caches are returned before each
// look, and the driver's copy of the log is dropped, so that what grows is what is leaked.
long growth_over_contexts(CacheOwner owner, int n) {
    const Model model(small_model(), owner);
    // Enough for a page to freeze; the time goes into the model's own matrices.
    const auto tokens = random_tokens(140, model.n_vocab(), 5);
    long after_warm_up = 0;
    for (int cycle = 0; cycle < n; ++cycle) {
        {
            ContextOptions options;
            options.n_ctx = 512;
            options.n_ubatch = 64;
            options.n_threads = 1;
            Context context(model, options);
            context.prefill(tokens);
        }
        clear_log();
        if (cycle != 20 && cycle != n - 1) continue;
        malloc_trim(0);
        if (cycle == 20) after_warm_up = resident_kib();
    }
    return resident_kib() - after_warm_up;
}

TEST(Lifetime, MemoryIsFlatOverContexts) {
    const long hosts = growth_over_contexts(CacheOwner::kHost, 120);
    const long ours = growth_over_contexts(CacheOwner::kPlugin, 120);
    mixed_kv_counters counters;
    plugin_api().counters(&counters);
    EXPECT_EQ(counters.n_caches, 0u);
    EXPECT_GT(counters.freezes, 0u);
    std::printf("growth over 100 contexts: host %ld KiB, ours %ld KiB\n", hosts, ours);
#if defined(__SANITIZE_ADDRESS__)
    GTEST_SKIP() << "AddressSanitizer keeps freed memory resident; its leak check looks instead";
#endif
    // A page leaked per context would be 16 KiB * 100.
    EXPECT_LT(ours, std::max(hosts, 0L) + 1024);
}

TEST(Lifetime, OutputIsBitIdenticalFromRunToRun) {
    const Model model(small_model(), CacheOwner::kPlugin);
    const auto tokens = random_tokens(200, model.n_vocab(), 6);
    for (int threads : {1, 2, 3}) {
        SCOPED_TRACE(threads);
        const auto run = [&] {
            ContextOptions options;
            options.n_threads = threads;
            options.n_ubatch = 64;
            Context context(model, options);
            Logits logits = context.decode(tokens);
            context.generate(7, 200, 20, 0, &logits);
            return logits;
        };
        const Logits first = run();
        for (int repeat = 0; repeat < 2; ++repeat) {
            const Logits again = run();
            ASSERT_EQ(first.values.size(), again.values.size());
            EXPECT_EQ(
                std::memcmp(first.values.data(), again.values.data(), first.values.size() * sizeof(float)),
                0);
        }
    }
}

TEST(Lifetime, ManyContextsAtOnceDoNotMix) {
    const Model model(small_model(), CacheOwner::kPlugin);
    const auto tokens = random_tokens(200, model.n_vocab(), 8);
    ContextOptions options;
    options.n_ctx = 512;
    options.n_threads = 1;
    const auto part = [&](Context& context, std::size_t first) {
        return context.decode(
            {tokens.begin() + std::ptrdiff_t(first), tokens.begin() + std::ptrdiff_t(first) + 50},
            llama_pos(first));
    };
    Context alone(model, options);
    Logits expected;
    for (std::size_t first = 0; first < tokens.size(); first += 50) expected.append(part(alone, first));

    std::vector<std::unique_ptr<Context>> contexts;
    std::vector<Logits> actual(8);
    for (std::size_t i = 0; i < actual.size(); ++i)
        contexts.push_back(std::make_unique<Context>(model, options));
    for (std::size_t first = 0; first < tokens.size(); first += 50) {
        for (std::size_t i = 0; i < actual.size(); ++i) actual[i].append(part(*contexts[i], first));
    }
    for (const Logits& logits : actual) {
        ASSERT_EQ(logits.values.size(), expected.values.size());
        EXPECT_EQ(
            std::memcmp(logits.values.data(), expected.values.data(), expected.values.size() * sizeof(float)),
            0);
    }
}
