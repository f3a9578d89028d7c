// Contexts of several threads at once: computing, shifting, restoring, pinned, made and freed, while others
// ask about all of them. Each gets what it would get alone. This is also what the sanitizers run
// (docs/reliability.md).
#include <gtest/gtest.h>

#include <atomic>
#include <functional>
#include <memory>
#include <thread>

#include "plugin_test.h"

using namespace mixed_kv::test;

namespace {

ContextOptions options(int n_threads, bool flash_attention = true) {
    ContextOptions o;
    o.n_ctx = 512;
    o.n_ubatch = 64;
    o.n_threads = n_threads;
    o.n_seq_max = 2;
    o.kv_unified = true;
    o.flash_attn = flash_attention ? LLAMA_FLASH_ATTN_TYPE_ENABLED : LLAMA_FLASH_ATTN_TYPE_DISABLED;
    return o;
}

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kSanitized = true;  // slow
#else
constexpr bool kSanitized = false;
#endif

std::vector<llama_token> tokens(std::size_t n, std::uint64_t seed) { return random_tokens(n, 512, seed); }

// What a server does with a context: a prompt whose pages freeze, a rollback into them, a K-shift, a copied
// sequence, a state saved and restored elsewhere.
std::vector<float> work(Context& context) {
    context.clear();
    Logits logits = context.prefill(tokens(200, 1));
    context.generate(7, 200, 3, 0, &logits);
    context.remove(0, 100, -1);
    logits.append(context.prefill(tokens(90, 2), 100));
    context.remove(0, 20, 60);
    context.shift(0, 60, -1, -40);
    logits.append(context.prefill(tokens(20, 3), 150));
    context.copy(0, 1);
    const std::vector<std::uint8_t> state = context.save_sequence(0);
    context.remove(0, -1, -1);
    context.restore_sequence(0, state);
    logits.append(context.prefill(tokens(10, 4), 170));
    context.shift(1, 0, -1, 5);
    logits.append(context.prefill(tokens(10, 5), 175, 1));
    return logits.values;
}

// Everything that can be asked while others compute.
void ask() {
    const mixed_kv_api& api = plugin_api();
    std::vector<mixed_kv_tensor_info> tensors(64);
    std::vector<mixed_kv_range> ranges(64);
    mixed_kv_counters counters;
    char text[256];
    api.counters(&counters);
    api.tensors(tensors.data(), tensors.size());
    api.ranges(ranges.data(), ranges.size());
    api.report(text, sizeof text);
    api.isa();
    std::size_t free = 0, total = 0;
    ggml_backend_dev_memory(plugin_device(), &free, &total);
}

}  // namespace

TEST(Concurrent, EachContextComputesAsIfAlone) {
    const Model model(small_model(), CacheOwner::kPlugin);
    for (const int n_threads : {1, 2}) {
        SCOPED_TRACE(n_threads);
        const auto alone = [&](bool flash_attention) {
            Context context(model, options(n_threads, flash_attention));
            return work(context);
        };
        const std::vector<float> expected = alone(true), pinned = alone(false);

        const int n_rounds = n_threads == 1 && !kSanitized ? 3 : 1;  // pools spin beside each other
        std::atomic<int> working{0};
        const auto rounds = [&](const std::function<void()>& round) {
            return std::thread([&working, round, n_rounds] {
                for (int i = 0; i < n_rounds; ++i) round();
                --working;
            });
        };
        std::vector<std::thread> threads;
        working = 4;
        // Two contexts that stay, one that is pinned by its first graph, one made and freed again and again.
        Context first(model, options(n_threads)), second(model, options(n_threads));
        Context without_flash_attention(model, options(n_threads, false));
        for (Context* context : {&first, &second})
            threads.push_back(rounds([&expected, context] { EXPECT_EQ(work(*context), expected); }));
        threads.push_back(rounds([&] { EXPECT_EQ(work(without_flash_attention), pinned); }));
        threads.push_back(rounds([&] {
            Context fresh(model, options(n_threads));
            EXPECT_EQ(work(fresh), expected);
        }));
        std::thread asks([&] {
            while (working > 0) ask();
        });
        for (std::thread& thread : threads) thread.join();
        asks.join();
    }
}

// The settings of the process change while contexts are made: each gets the old ones or the new ones, whole.
TEST(Concurrent, SettingsChangeWhileContextsAreMade) {
    const Model model(small_model(), CacheOwner::kPlugin);
    const auto with = [&](const char* settings) {
        char error[128];
        EXPECT_EQ(plugin_api().configure(settings, error, sizeof error), 1) << error;
        Context context(model, options(1));
        return work(context);
    };
    const char* const kChoices[] = {"window=32,sinks=4,k=q8,v=q4", "window=64,sinks=0,k=q4,v=q8"};
    const std::vector<float> a = with(kChoices[0]), b = with(kChoices[1]);
    ASSERT_NE(a, b);
    std::atomic<bool> stop{false};
    std::thread changes([&] {
        char error[128];
        for (int i = 0; !stop; ++i) plugin_api().configure(kChoices[i % 2], error, sizeof error);
    });
    for (int i = 0; i < 4; ++i) {
        Context context(model, options(1));
        const std::vector<float> logits = work(context);
        EXPECT_TRUE(logits == a || logits == b);
    }
    stop = true;
    changes.join();
    plugin_api().configure("", nullptr, 0);
}
