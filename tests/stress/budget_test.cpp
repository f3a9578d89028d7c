// GGML_MIXED_KV_BUDGET_MB in real contexts: what the system counts stays within the budget at every moment
// that can be looked at, and rows are exact while they fit.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>

#include "plugin_test.h"
#include "process_memory.h"
#include "random_model.h"

using namespace mixed_kv::test;

namespace {

constexpr double kMiB = 1024.0 * 1024.0;
constexpr int kLayers = 2, kHeads = 8, kHeadDim = 64;
constexpr double kTokenBytes = 2.0 * kLayers * kHeads * kHeadDim * 2;  // K and V in FP16: 4 KiB

const std::string& model_file() { return random_model_file(mostly_cache(kLayers, kHeads, kHeadDim)); }

void configure(const std::string& text) {
    char error[256] = "";
    ASSERT_EQ(plugin_api().configure(text.c_str(), error, sizeof error), 1) << error;
}

mixed_kv_counters counters() {
    mixed_kv_counters c;
    plugin_api().counters(&c);
    return c;
}

// What the system counts, and the records.
double held_mib() {
    std::vector<mixed_kv_range> ranges(plugin_api().ranges(nullptr, 0) + 8);
    ranges.resize(std::min(plugin_api().ranges(ranges.data(), ranges.size()), ranges.size()));
    double bytes = 0;
    for (const mixed_kv_range& r : ranges)
        bytes += double(resident_bytes(
            r.begin, std::size_t(static_cast<const char*>(r.end) - static_cast<const char*>(r.begin))));
    return (bytes + double(counters().bookkeeping_bytes)) / kMiB;
}

// Looks at memory at nodes of the graph, at each n-th.
struct Watch {
    double budget = 0, most = 0;
    int every = 1, n_nodes = 0, n_samples = 0;
    void look() {
        const double held = held_mib();
        most = std::max(most, held);
        ++n_samples;
        EXPECT_LE(held, budget + std::max(1.0, 0.01 * budget)) << "sample " << n_samples;
    }
    static bool callback(ggml_tensor* node, bool ask, void* self) {
        auto& watch = *static_cast<Watch*>(self);
        if (!ask || node->op != GGML_OP_FLASH_ATTN_EXT) return false;
        if (watch.n_nodes++ % watch.every == 0) watch.look();
        return false;
    }
};

ContextOptions options(std::uint32_t n_ctx, Watch* watch = nullptr, int n_threads = 1) {
    ContextOptions o;
    o.n_ctx = n_ctx;
    o.n_threads = n_threads;
    if (watch != nullptr) {
        o.eval_callback = Watch::callback;
        o.eval_callback_data = watch;
    }
    return o;
}

std::vector<llama_token> part(const std::vector<llama_token>& tokens, std::size_t first, std::size_t n) {
    return {tokens.begin() + std::ptrdiff_t(first), tokens.begin() + std::ptrdiff_t(first + n)};
}

std::string last_line() {
    std::string text(plugin_api().report(nullptr, 0) + 1, '\0');
    plugin_api().report(text.data(), text.size());
    text.resize(text.find_last_not_of(std::string("\n\0", 2)) + 1);
    return text.substr(text.rfind('\n') + 1);
}

std::string refusal() {
    for (const std::string& line : logged_lines()) {
        if (line.find(": refused, all caches") != std::string::npos) return line;
    }
    return "";
}

// The number behind a text; -1: it is not there.
double number_after(const std::string& line, const std::string& before) {
    const auto at = line.find(before);
    return at == std::string::npos ? -1 : std::atof(line.c_str() + at + before.size());
}

}  // namespace

TEST(Budget, HoldsAtEveryMomentOfAPromptAndOfGeneration) {
    const char* text = std::getenv("MIXED_KV_BUDGET_TOKENS");
    const auto n_tokens = std::uint32_t(text != nullptr ? std::atoi(text) : 8192);
    const double f16 = n_tokens * kTokenBytes / kMiB;
    const Model model(model_file(), CacheOwner::kPlugin);
    Watch watch;
    watch.budget = f16 * 0.25;
    configure("budget=25%");
    {
        Context context(model, options(n_tokens, &watch));
        const auto tokens = random_tokens(n_tokens, 320, 1);
        // What the cache says that it holds exactly when it grows token by token; a graph brings 512 at once.
        const double n_exact = number_after(last_line(), "exact up to ");
        ASSERT_GT(n_exact, n_tokens / 6.0) << last_line();
        const std::size_t quarter = (std::size_t(n_exact) - 512) / 512 * 512;
        context.prefill(part(tokens, 0, quarter));
        EXPECT_EQ(counters().steps, 0u) << "before memory asks for it";
        EXPECT_EQ(counters().cold_bytes, 0u);
        context.prefill(part(tokens, quarter, n_tokens - 128 - quarter), llama_pos(quarter));
        for (std::size_t i = n_tokens - 128; i < n_tokens; ++i) {
            context.prefill({tokens[i]}, llama_pos(i));
            watch.look();
        }
        std::printf(
            "%u tokens, %.1f MiB in FP16, budget %.1f: at most %.2f MiB in %d samples, %.2f at the end; "
            "%llu steps, %llu of pages that were cold\n%s\n",
            n_tokens, f16, watch.budget, watch.most, watch.n_samples, held_mib(),
            static_cast<unsigned long long>(counters().steps),
            static_cast<unsigned long long>(counters().steps_again), last_line().c_str());
        EXPECT_GE(watch.n_samples, 150);
        EXPECT_GT(watch.most, watch.budget * 0.9) << "and it is used";
    }
    configure("");
}

// What fits is as it is without a budget, bit for bit.
TEST(Budget, RowsAreExactWhileTheyFit) {
    const Model model(model_file(), CacheOwner::kPlugin);
    const auto tokens = random_tokens(700, 320, 2);
    Logits expected, actual;
    configure("k=f16,v=f16");
    {
        Context context(model, options(4096));
        expected = context.decode(tokens);
    }
    configure("budget=45%");
    {
        const std::uint64_t before = counters().steps;
        Context context(model, options(4096));
        actual = context.decode(tokens);
        EXPECT_EQ(counters().steps, before);
    }
    EXPECT_EQ(expected.values, actual.values);
    configure("");
}

// Pages step down on the host's threads.
TEST(Budget, ThreadsMakeNoDifference) {
    const Model model(model_file(), CacheOwner::kPlugin);
    const auto tokens = random_tokens(2000, 320, 4);
    configure("budget=45%");
    Logits expected;
    for (const int n_threads : {1, 2}) {
        const std::uint64_t before = counters().steps;
        Context context(model, options(4096, nullptr, n_threads));
        context.prefill(part(tokens, 0, 1990));
        const Logits logits = context.decode(part(tokens, 1990, 10), 1990);
        EXPECT_GT(counters().steps, before + 20);
        if (n_threads == 1) expected = logits;
        // Attention is cut into other pieces; another row would show by far more.
        EXPECT_LT(compare(expected, logits).nmse, 1e-9);
    }
    configure("");
}

TEST(Budget, HoldsWithSlotsStatesCopiesAndShifts) {
    const Model model(model_file(), CacheOwner::kPlugin);
    for (const bool unified : {true, false}) {
        SCOPED_TRACE(unified ? "one stream" : "streams");
        Watch watch;
        const std::uint32_t n_ctx = 8192;
        watch.budget = 0.3 * n_ctx * kTokenBytes / kMiB;
        configure("budget=30%,window=32");
        ContextOptions o = options(n_ctx, &watch);
        o.n_seq_max = 4;
        o.kv_unified = unified;
        Context context(model, o);
        for (llama_seq_id s = 0; s < 3; ++s) {
            context.prefill(random_tokens(1800, 320, std::uint64_t(s)), 0, s);
            watch.look();
        }
        for (llama_pos p = 1800; p < 1900; ++p) {
            context.decode_batch({{5, p, {0}}, {6, p, {1}}, {7, p, {2}}});
            watch.look();
        }
        EXPECT_GT(counters().steps, 0u);
        const auto state = context.save_sequence(0);
        context.restore_sequence(3, state);
        watch.look();
        context.remove(1, 0, -1);
        context.copy(2, 1);
        context.decode_batch({{5, 1900, {0}}, {6, 1900, {1}}, {7, 1900, {2}}, {8, 1900, {3}}});
        watch.look();
        context.remove(0, 100, 400);
        context.shift(0, 400, -1, -300);
        context.prefill(random_tokens(200, 320, 9), 1601, 0);
        watch.look();
        // Elsewhere without a budget, and what such a cache has, here.
        configure("k=q8,v=q8");
        {
            ContextOptions other = o;
            other.eval_callback = nullptr;
            Context plain(model, other);
            plain.restore_sequence(0, state);
            plain.prefill({9}, plain.last_position(0) + 1);
            context.remove(3, 0, -1);
            context.restore_sequence(3, plain.save_sequence(0));
        }
        watch.look();
        context.prefill({9}, context.last_position(3) + 1, 3);
        const auto whole = context.save();
        context.clear();
        context.restore(whole);
        watch.look();
        std::printf("%s: budget %.2f MiB, at most %.2f in %d samples\n", unified ? "one stream" : "streams",
                    watch.budget, watch.most, watch.n_samples);
    }
    configure("");
}

// A restore into a context that has computed nothing yet.
TEST(Budget, HoldsWhenAStateComesFirst) {
    const Model model(model_file(), CacheOwner::kPlugin);
    std::vector<std::uint8_t> state;
    configure("k=q8,v=q8");
    {
        Context context(model, options(4096));
        context.prefill(random_tokens(4000, 320, 3));
        state = context.save();
    }
    configure("budget=45%");
    Context context(model, options(4096));
    context.restore(state);
    Watch watch;
    watch.budget = 0.45 * 4096 * kTokenBytes / kMiB;
    watch.look();
    EXPECT_GT(watch.most, 0.6 * watch.budget);
    context.prefill({5}, 4000);
    watch.look();
    configure("");
}

TEST(Budget, IsSharedAndRefusedWithNumbersThatWouldDo) {
    const Model model(model_file(), CacheOwner::kPlugin);
    const ContextOptions o = options(8192);  // 32 MiB
    configure("budget=5");
    clear_log();
    EXPECT_THROW(Context(model, o), std::runtime_error);
    const std::string line = refusal();
    std::printf("%s\n", line.c_str());
    EXPECT_NE(line.find("GGML_MIXED_KV_BUDGET_MB=5"), std::string::npos);
    EXPECT_EQ(counters().n_caches, 0u);
    const double enough = number_after(line, "a budget of ");
    const double n_tokens = number_after(line, "a context of at most ");
    ASSERT_GT(enough, 5);
    ASSERT_GT(n_tokens, 1000);
    configure("budget=" + std::to_string(enough));
    EXPECT_NO_THROW(Context(model, o));
    configure("budget=" + std::to_string(enough * 0.9));
    EXPECT_THROW(Context(model, o), std::runtime_error);
    configure("budget=5");
    EXPECT_NO_THROW(Context(model, options(std::uint32_t(n_tokens) / 256 * 256)));

    // Two of them, each with half. The first gives up what the second one needs, at once.
    configure("budget=20");
    Watch watch;
    watch.budget = 20;
    auto first = std::make_unique<Context>(model, o);
    first->prefill(random_tokens(4096, 320, 1));
    EXPECT_EQ(counters().cold_bytes, 0u) << "16 MiB fit";
    Context second(model, o);
    watch.look();
    EXPECT_GT(counters().cold_bytes, 0u);
    second.prefill(random_tokens(4096, 320, 2));
    watch.look();
    EXPECT_THROW(Context(model, o), std::runtime_error) << "three would not fit";
    first.reset();
    const std::uint64_t steps = counters().steps;
    second.prefill(random_tokens(300, 320, 3), 4096);
    EXPECT_EQ(counters().steps, steps) << "all of it is the second one's";
    configure("");
}
