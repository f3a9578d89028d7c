// Faults of the system and bad input, in real contexts: one clear line, a living host, no partial state.
#include <gtest/gtest.h>

#include <ggml-backend.h>
#include <sys/mman.h>
#include <sys/resource.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <fstream>

#include "fault_hooks.h"
#include "plugin_test.h"
#include "random_model.h"

using namespace mixed_kv::test;

namespace {

ContextOptions options(std::uint32_t n_ctx = 512) {
    ContextOptions o;
    o.n_ctx = n_ctx;
    o.n_ubatch = 64;
    o.n_threads = 1;
    return o;
}

std::vector<BatchToken> batch(std::size_t n, llama_pos first, int seed) {
    std::vector<BatchToken> result;
    for (const llama_token t : random_tokens(n, 512, std::uint64_t(seed)))
        result.push_back({t, first++, {0}, result.size() + 1 == n});
    return result;
}

bool was_said(const std::string& part) {
    const auto lines = logged_lines();
    return std::any_of(lines.begin(), lines.end(),
                       [&](const std::string& l) { return l.find(part) != std::string::npos; });
}

mixed_kv_counters counters() {
    mixed_kv_counters c;
    plugin_api().counters(&c);
    return c;
}

// Prompt, generation and a rollback into cold pages; every status. The logits of the last token that worked.
struct Outcome {
    std::vector<int> statuses;
    Logits last;
};
Outcome workload(Context& context) {
    Outcome outcome;
    const auto step = [&](const std::vector<BatchToken>& tokens) {
        const int status = context.try_decode(tokens);
        outcome.statuses.push_back(status);
        if (status != 0) return;
        outcome.last.n_vocab = 512;
        const float* row = llama_get_logits_ith(context.get(), std::int32_t(tokens.size()) - 1);
        outcome.last.values.assign(row, row + 512);
    };
    step(batch(200, 0, 1));
    for (llama_pos p = 200; p < 230 && outcome.statuses.back() == 0; ++p) step(batch(1, p, int(p)));
    if (outcome.statuses.back() != 0) return outcome;
    context.remove(0, 60, -1);
    step(batch(100, 60, 2));
    return outcome;
}

// Fails the n-th request for memory for every n until the workload no longer meets one.
void fail_every_request(Memory kind, bool for_good, long stride) {
    const Model model(small_model(), CacheOwner::kPlugin);
    Outcome expected;
    {
        Context context(model, options());
        expected = workload(context);
    }
    int refused = 0, failed = 0, unharmed = 0;
    for (long n = 0; n < 100000; n += stride) {
        SCOPED_TRACE(n);
        fail_from(kind, n, for_good);
        std::unique_ptr<Context> context;
        try {
            context = std::make_unique<Context>(model, options());
        } catch (const std::runtime_error&) {
            fail_from(kind, -1);
            ++refused;
            EXPECT_EQ(counters().n_caches, 0u);
            continue;
        }
        const Outcome outcome = workload(*context);
        const long requests = fail_from(kind, -1);
        const bool broke = outcome.statuses.back() != 0;
        failed += broke;
        if (broke) {
            EXPECT_TRUE(outcome.statuses.back() == -2 || outcome.statuses.back() == -3)
                << outcome.statuses.back();
            // Memory is back: the same context goes on from what it holds, as if nothing had happened.
            context->clear(true);
            const Outcome again = workload(*context);
            EXPECT_EQ(again.statuses, expected.statuses);
            EXPECT_EQ(again.last.values, expected.last.values);
        } else if (requests <= n) {
            break;  // the fault was never reached
        } else {
            ++unharmed;  // freezing waits for memory, nothing else needed it
        }
    }
    std::printf("%d contexts refused, %d decodes failed, %d went on without\n", refused, failed, unharmed);
    EXPECT_GT(refused + failed, 0);
}

}  // namespace

TEST(Faults, EveryRequestForPagesFailsOnce) { fail_every_request(Memory::kPages, false, 1); }
TEST(Faults, NoPagesFromTheNthRequestOn) { fail_every_request(Memory::kPages, true, 1); }
TEST(Faults, EveryRequestForRecordsFailsOnce) { fail_every_request(Memory::kRecords, false, 13); }

// Under a budget, where pages step down all the time: a step needs memory first.
TEST(Faults, StepsDownALadderWithoutMemory) {
    char error[256] = "";
    ASSERT_EQ(plugin_api().configure("budget=45%,window=32", error, sizeof error), 1) << error;
    const std::uint64_t before = counters().steps;
    fail_every_request(Memory::kPages, false, 1);
    fail_every_request(Memory::kRecords, false, 17);
    EXPECT_GT(counters().steps, before);
    plugin_api().configure("", nullptr, 0);
}

// After a failed decode the rows before it are intact: what llama.cpp promises its caller.
TEST(Faults, RowsBeforeAFailedDecodeAreIntact) {
    const Model model(small_model(), CacheOwner::kPlugin);
    Context context(model, options()), twin(model, options());
    for (Context* c : {&context, &twin}) ASSERT_EQ(c->try_decode(batch(200, 0, 1)), 0);
    fail_from(Memory::kPages, 0, true);
    const int status = context.try_decode(batch(250, 200, 2));
    fail_from(Memory::kPages, -1);
    ASSERT_LT(status, 0);
    for (Context* c : {&context, &twin}) c->remove(0, 200, -1);
    EXPECT_EQ(context.decode_batch(batch(40, 200, 3)).values, twin.decode_batch(batch(40, 200, 3)).values);
}

// The host repeats a K-shift that failed, over all layers: none may have been shifted. With seq_div most
// cells of a page get distances of their own, and pages are encoded anew.
TEST(Faults, KShiftIsDoneForAllLayersOrForNone) {
    const Model model(small_model(), CacheOwner::kPlugin);
    for (const bool divide : {false, true}) {
        const auto prepared = [&] {
            auto context = std::make_unique<Context>(model, options());
            EXPECT_EQ(context->try_decode(batch(200, 0, 1)), 0);
            EXPECT_EQ(context->try_decode(batch(1, 200, 2)), 0);
            if (divide) {
                context->divide(0, 0, 201, 4);
            } else {
                context->shift(0, 0, -1, 3);
            }
            return context;
        };
        const auto decode_and_drop = [&](Context& context) {
            const llama_pos next = context.last_position(0) + 1;
            const int status = context.try_decode(batch(1, next, 3));
            context.remove(0, next, -1);
            return status;
        };
        const auto twin = prepared();
        ASSERT_EQ(decode_and_drop(*twin), 0);
        const std::vector<std::uint8_t> expected = twin->save_sequence(0);
        int failed = 0;
        for (long n = 0; n < 10000; ++n) {
            SCOPED_TRACE(n);
            const auto context = prepared();
            clear_log();
            fail_from(Memory::kRecords, n);
            decode_and_drop(*context);
            const long requests = fail_from(Memory::kRecords, -1);
            failed += was_said("failed to compute K-shift");
            ASSERT_EQ(decode_and_drop(*context), 0);
            ASSERT_TRUE(context->save_sequence(0) == expected);
            if (requests <= n) break;
        }
        std::printf("%d K-shifts failed\n", failed);
        EXPECT_GT(failed, 10);
    }
}

TEST(Faults, AbortInMidGraphLeavesTheRowsBeforeIt) {
    // Exact storage, so that rows can be compared bit for bit.
    char error[128];
    ASSERT_EQ(plugin_api().configure("window=1048576", error, sizeof error), 1);
    const Model model(small_model(), CacheOwner::kPlugin);
    Context context(model, options()), twin(model, options());
    for (Context* c : {&context, &twin}) ASSERT_EQ(c->try_decode(batch(150, 0, 1)), 0);
    int aborted = 0;
    for (int checks = 0; checks < 40; ++checks) {
        int left = checks;
        llama_set_abort_callback(
            context.get(), [](void* p) { return --*static_cast<int*>(p) < 0; }, &left);
        const int status = context.try_decode(batch(50, 150, 2));
        llama_set_abort_callback(context.get(), nullptr, nullptr);
        ASSERT_TRUE(status == 0 || status == 2) << status;
        aborted += status == 2;
        context.remove(0, 150, -1);
    }
    plugin_api().configure("", error, sizeof error);
    EXPECT_GT(aborted, 2);
    EXPECT_EQ(context.decode_batch(batch(50, 150, 2)).values, twin.decode_batch(batch(50, 150, 2)).values);
}

TEST(Faults, DamagedStateFileIsRefusedAndTheCacheLeftClean) {
    const Model model(small_model(), CacheOwner::kPlugin);
    Context context(model, options());
    const auto tokens = random_tokens(200, 512, 1);
    context.prefill(tokens);
    const std::string path = small_model() + ".state";
    ASSERT_TRUE(llama_state_save_file(context.get(), path.c_str(), tokens.data(), tokens.size()));
    std::ifstream in(path, std::ios::binary);
    const std::string good((std::istreambuf_iterator<char>(in)), {});
    const auto load = [&](const std::string& bytes, Context& c) {
        std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes;
        std::vector<llama_token> read(512);
        std::size_t n = 0;
        return llama_state_load_file(c.get(), path.c_str(), read.data(), read.size(), &n);
    };
    Context target(model, options());
    const Logits expected = target.decode(random_tokens(100, 512, 7));
    for (const std::size_t size :
         {std::size_t(0), std::size_t(3), std::size_t(100), good.size() / 2, good.size() - 1}) {
        SCOPED_TRACE(size);
        EXPECT_FALSE(load(good.substr(0, size), target));
        target.clear(true);
        EXPECT_EQ(target.decode(random_tokens(100, 512, 7)).values, expected.values);
    }
    for (const std::size_t at : {0, 4, 8}) {  // magic, version, number of tokens
        std::string bytes = good;
        bytes[at] = char(bytes[at] ^ 0x7f);
        EXPECT_FALSE(load(bytes, target)) << at;
    }
    target.clear(true);
    EXPECT_TRUE(load(good, target));
    EXPECT_EQ(target.last_position(0), 199);
    std::remove(path.c_str());
}

// The same number of cells in more pieces than at the save before: llama.cpp reuses that one's buffer.
TEST(Faults, StateOnTheDeviceInMorePieces) {
    const Model model(small_model(), CacheOwner::kPlugin);
    ContextOptions o = options();
    o.n_seq_max = 4;
    o.kv_unified = true;
    Context context(model, o);
    const auto tokens = [](std::size_t n) { return random_tokens(n, 512, n); };
    context.prefill(tokens(40), 0, 0);
    context.prefill(tokens(10), 0, 1);
    context.save_sequence(0, LLAMA_STATE_SEQ_FLAGS_ON_DEVICE);
    context.remove(0, 20, 30);
    context.prefill(tokens(5), 0, 2);  // half of the hole
    context.prefill(tokens(10), 40, 0);
    const auto state = context.save_sequence(0, LLAMA_STATE_SEQ_FLAGS_ON_DEVICE);
    context.restore_sequence(0, state, LLAMA_STATE_SEQ_FLAGS_ON_DEVICE);
    EXPECT_EQ(context.last_position(0), 49);
}

TEST(Faults, LoadedButUnusedItChangesNothing) {
    const Model host(small_model(), CacheOwner::kHost);
    const auto before = counters();
    Context context(host, options());
    context.decode(random_tokens(100, 512, 1));
    const auto after = counters();
    EXPECT_EQ(after.n_caches, 0u);
    EXPECT_EQ(after.graphs, before.graphs);
    EXPECT_EQ(after.native_ops + after.delegated_ops, before.native_ops + before.delegated_ops);
}

TEST(Faults, TwoModelsAndEightContextsWithEightSequences) {
    const std::string other_path = small_model() + ".other";
    write_random_model(random_model_spec("qwen3"), other_path);
    {
        const Model a(small_model(), CacheOwner::kPlugin), b(other_path, CacheOwner::kPlugin);
        std::vector<std::unique_ptr<Context>> contexts;
        ContextOptions o = options(1024);
        o.n_seq_max = 8;
        o.kv_unified = true;
        for (int i = 0; i < 8; ++i) contexts.push_back(std::make_unique<Context>(i % 2 == 0 ? a : b, o));
        std::vector<std::vector<float>> last(8);
        for (int round = 0; round < 6; ++round) {
            for (std::size_t i = 0; i < 8; ++i) {
                std::vector<BatchToken> tokens;
                for (int s = 0; s < 8; ++s) {
                    for (int k = 0; k < 12; ++k)
                        tokens.push_back(
                            {llama_token(10 + (round * 31 + s * 7 + k) % 400), round * 12 + k, {s}, k == 11});
                }
                last[i] = contexts[i]->decode_batch(tokens).values;
            }
        }
        for (std::size_t i = 2; i < 8; ++i) EXPECT_EQ(last[i], last[i % 2]);
        EXPECT_EQ(counters().n_caches, 8u);
    }
    std::remove(other_path.c_str());
    EXPECT_EQ(counters().n_caches, 0u);
}

TEST(Faults, LockedModelAndLockedProcess) {
    load_backends();
    const auto run = [] {
        llama_model_params params = llama_model_default_params();
        params.load_mode = LLAMA_LOAD_MODE_MLOCK;
        ggml_backend_dev_t devices[] = {plugin_device(), nullptr};
        params.devices = devices;
        llama_model* model = llama_model_load_from_file(small_model().c_str(), params);
        if (model == nullptr) std::exit(1);
        llama_model_free(model);
        if (mlockall(MCL_CURRENT | MCL_FUTURE) != 0) std::exit(77);
        const Model ours(small_model(), CacheOwner::kPlugin);
        Context context(ours, options());
        const Outcome outcome = workload(context);
        context.clear(true);
        const Outcome again = workload(context);
        std::exit(outcome.statuses.back() == 0 && outcome.last.values == again.last.values ? 0 : 2);
    };
    GTEST_FLAG_SET(death_test_style, "threadsafe");
    EXPECT_EXIT(
        run(),
        [](int status) {
            return WIFEXITED(status) && (WEXITSTATUS(status) == 0 || WEXITSTATUS(status) == 77);
        },
        "");
}

// A limit on the address space: contexts are refused or decodes fail, in words, and the process goes on.
TEST(Faults, AddressSpaceLimit) {
    const auto run = [] {
        const Model model(small_model(), CacheOwner::kPlugin);
        {
            Context warm(model, options());
            workload(warm);
        }
        long pages = 0;
        std::ifstream("/proc/self/statm") >> pages;
        int refused = 0, made = 0;
        for (const long extra_mib : {1, 8, 64, 512, 4096}) {
            rlimit limit{rlim_t(pages) * 4096 + (rlim_t(extra_mib) << 20), RLIM_INFINITY};
            setrlimit(RLIMIT_AS, &limit);
            try {
                Context context(model, options(131072));  // 768 MiB of address space
                ++made;
            } catch (const std::exception&) {
                ++refused;
            }
        }
        std::fprintf(stderr, "refused %d made %d said %d\n", refused, made, was_said("cannot reserve"));
        std::exit(refused > 0 && made > 0 && was_said("cannot reserve") ? 0 : 1);
    };
    GTEST_FLAG_SET(death_test_style, "threadsafe");
    EXPECT_EXIT(run(), testing::ExitedWithCode(0), "");
}

TEST(Faults, NoCpuBackend) {
    const auto run = [] {
        llama_log_set([](ggml_log_level, const char* text, void*) { std::fputs(text, stderr); }, nullptr);
        ggml_backend_reg_t reg = ggml_backend_load(std::getenv("GGML_BACKEND_PATH"));
        if (reg == nullptr) std::exit(1);
        const bool refused = ggml_backend_dev_init(ggml_backend_reg_dev_get(reg, 0), nullptr) == nullptr;
        std::exit(refused ? 0 : 2);
    };
    GTEST_FLAG_SET(death_test_style, "threadsafe");
    EXPECT_EXIT(run(), testing::ExitedWithCode(0), "mixed-kv: .*CPU backend");
}
