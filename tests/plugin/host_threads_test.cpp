// What the plugin leaves to the host, and what it lends it: recurrent state in the host's memory, and a
// thread pool where the host has none.
#include <gtest/gtest.h>

#include <ggml-cpu.h>

#include <cstdio>
#include <cstring>
#include <filesystem>
#include <memory>
#include <thread>

#include "plugin_test.h"
#include "random_model.h"

using namespace mixed_kv::test;

namespace {

std::size_t n_threads_of_process() {
    std::size_t n = 0;
    for ([[maybe_unused]] const auto& task : std::filesystem::directory_iterator("/proc/self/task")) ++n;
    return n;
}

ContextOptions options_with(int n_threads) {
    ContextOptions options;
    options.n_ctx = 512;
    options.n_ubatch = 64;
    options.n_threads = n_threads;
    return options;
}

Logits prompt_and_steps(Context& context, const std::vector<llama_token>& tokens) {
    Logits logits = context.decode(tokens);
    context.generate(7, llama_pos(tokens.size()), 4, 0, &logits);
    return logits;
}

void expect_same(const Logits& a, const Logits& b) {
    ASSERT_EQ(a.values.size(), b.values.size());
    EXPECT_EQ(std::memcmp(a.values.data(), b.values.data(), a.values.size() * sizeof(float)), 0);
}

// ggml's pools through the CPU registration, as llama.cpp's programs make them.
struct HostPoolDeleter {
    void operator()(ggml_threadpool* pool) const {
        using free_t = void (*)(ggml_threadpool_t);
        ggml_backend_reg_t cpu =
            ggml_backend_dev_backend_reg(ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU));
        reinterpret_cast<free_t>(ggml_backend_reg_get_proc_address(cpu, "ggml_threadpool_free"))(pool);
    }
};
using HostPoolHandle = std::unique_ptr<ggml_threadpool, HostPoolDeleter>;

HostPoolHandle new_host_pool(int n_threads) {
    using new_t = ggml_threadpool_t (*)(ggml_threadpool_params*);
    ggml_backend_reg_t cpu =
        ggml_backend_dev_backend_reg(ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU));
    ggml_threadpool_params params = ggml_threadpool_params_default(n_threads);
    return HostPoolHandle(
        reinterpret_cast<new_t>(ggml_backend_reg_get_proc_address(cpu, "ggml_threadpool_new"))(&params));
}

}  // namespace

TEST(HostMemory, RecurrentStateStaysWithTheHost) {
    const auto path = std::filesystem::temp_directory_path() / "mixed-kv-jamba-test.gguf";
    write_random_model(random_model_spec("jamba"), path.string());
    {
        const Model model(path.string(), CacheOwner::kPlugin);
        const auto tokens = random_tokens(200, model.n_vocab(), 3);
        mixed_kv_counters before, after;
        plugin_api().counters(&before);
        Context context(model, options_with(1));
        prompt_and_steps(context, tokens);
        plugin_api().counters(&after);
        EXPECT_GT(after.native_ops, before.native_ops);
        EXPECT_EQ(after.delegated_ops, before.delegated_ops);
        EXPECT_GT(after.n_tensors_mixed, 0u);
    }
    std::filesystem::remove(path);
}

// Hosts that attach no pool: ours is lent, reused from context to context, and changes no result.
TEST(LentPool, ThreadsDoNotPileUpAndResultsStay) {
    const Model model(small_model(), CacheOwner::kPlugin);
    const auto tokens = random_tokens(80, model.n_vocab(), 4);
    Logits expected;
    {
        Context context(model, options_with(2));
        const HostPoolHandle pool = new_host_pool(2);
        llama_attach_threadpool(context.get(), pool.get(), pool.get());
        expected = prompt_and_steps(context, tokens);
        llama_detach_threadpool(context.get());
    }
    std::size_t after_first = 0;
    for (int cycle = 0; cycle < 5; ++cycle) {
        Context context(model, options_with(2));
        expect_same(expected, prompt_and_steps(context, tokens));
        if (cycle == 0) after_first = n_threads_of_process();
    }
    EXPECT_GE(after_first, 2u);  // the pool outlives its graphs: it is not one of ggml's disposable ones
    EXPECT_EQ(n_threads_of_process(), after_first);
}

TEST(LentPool, GivesWayToTheHostsOwnAndComesBack) {
    const Model model(small_model(), CacheOwner::kPlugin);
    const auto tokens = random_tokens(80, model.n_vocab(), 4);
    Context context(model, options_with(2));
    const auto run = [&] {
        context.clear();
        return prompt_and_steps(context, tokens);
    };
    const Logits lent = run();
    for (int round = 0; round < 2; ++round) {
        const HostPoolHandle pool = new_host_pool(2);
        llama_attach_threadpool(context.get(), pool.get(), pool.get());
        expect_same(lent, run());
        llama_detach_threadpool(context.get());
        expect_same(lent, run());
    }
}

TEST(LentPool, GrowsWithTheThreadsAskedFor) {
    const Model model(small_model(), CacheOwner::kPlugin);
    const auto tokens = random_tokens(20, model.n_vocab(), 4);
    Context context(model, options_with(2));
    for (int n_threads : {2, 3, 1}) {
        SCOPED_TRACE(n_threads);
        llama_set_n_threads(context.get(), n_threads, n_threads);
        context.clear();
        const Logits grown = prompt_and_steps(context, tokens);
        Context fresh(model, options_with(n_threads));
        expect_same(grown, prompt_and_steps(fresh, tokens));
    }
}

// Two contexts that compute at the same time must not share a lent pool.
TEST(LentPool, IsNotSharedByConcurrentContexts) {
    const Model model(small_model(), CacheOwner::kPlugin);
    const auto tokens = random_tokens(60, model.n_vocab(), 4);
    Context alone(model, options_with(2));
    const Logits expected = prompt_and_steps(alone, tokens);
    const auto work = [&] {
        for (int i = 0; i < 2; ++i) {
            Context context(model, options_with(2));
            expect_same(expected, prompt_and_steps(context, tokens));
        }
    };
    std::thread first(work), second(work);
    first.join();
    second.join();
}
