// K-shift beside the host's: rows that stay exact are turned as the host turns F16 rows, and cold keys lose
// no more over 64 shifts than in llama.cpp's own caches of equal bits, which dequantize, turn and quantize
// again.
#include <gtest/gtest.h>

#include <ggml.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <sstream>

#include "plugin_test.h"
#include "random_model.h"
#include "saved_rows.h"

using namespace mixed_kv::test;

namespace {

constexpr int kShifts = 64;
constexpr std::size_t kTokens = 384;

// Moves every cell and has the host apply it: llama.cpp shifts with the next decode.
void shift_all(Context& context, int delta) {
    context.shift(0, 0, -1, delta);
    const llama_pos last = context.last_position(0);
    context.decode({20}, last + 1);
    context.remove(0, last + 1, -1);
}

struct Architecture {
    const char* preset;
    bool interleaved;  // RoPE's pairs are neighbours
};

class ShiftDrift : public testing::TestWithParam<Architecture> {
  protected:
    void SetUp() override {
        RandomModelSpec spec = random_model_spec(GetParam().preset);
        spec.head_dim = 64;
        path_ = testing::TempDir() + "mixed-kv-shift-" + GetParam().preset + ".gguf";
        write_random_model(spec, path_);
        load_backends();
    }
    void TearDown() override {
        std::remove(path_.c_str());
        plugin_api().configure("", nullptr, 0);
    }
    std::unique_ptr<Context> start(const Model& model, ggml_type type = GGML_TYPE_F16) {
        ContextOptions options;
        options.n_ctx = 512;
        options.n_ubatch = 64;
        options.n_threads = 1;
        options.type_k = options.type_v = type;
        auto context = std::make_unique<Context>(model, options);
        context->decode(random_tokens(kTokens, 512, 7));
        return context;
    }
    static void configure(const std::string& settings) {
        char error[256] = "";
        ASSERT_EQ(plugin_api().configure(settings.c_str(), error, sizeof error), 1) << error;
    }

    // Relative RMS of the first `kTokens` keys against exact ones turned by a distance, over all layers.
    double error(const SavedRows& keys, const SavedRows& exact, double distance) const {
        double difference = 0, size = 0;
        for (std::size_t layer = 0; layer < exact.layers.size(); ++layer) {
            for (std::size_t i = 0; i < kTokens * exact.row_elements; i += 64) {
                const float* from = exact.layers[layer].values.data() + i;
                const float* to = keys.layers[layer].values.data() + i;
                for (int pair = 0; pair < 32; ++pair) {
                    const int a = GetParam().interleaved ? 2 * pair : pair;
                    const int b = GetParam().interleaved ? a + 1 : a + 32;
                    const double angle = distance * std::pow(10000.0, -pair / 32.0);
                    const double c = std::cos(angle), s = std::sin(angle);
                    difference += std::pow(to[a] - (c * from[a] - s * from[b]), 2) +
                                  std::pow(to[b] - (s * from[a] + c * from[b]), 2);
                    size += double(from[a]) * from[a] + double(from[b]) * from[b];
                }
            }
        }
        return std::sqrt(difference / size);
    }

    std::string path_;
};

}  // namespace

TEST_P(ShiftDrift, KeysLoseNoMoreThanInTheHostsCaches) {
    const Model host(path_, CacheOwner::kHost), ours(path_, CacheOwner::kPlugin);
    struct Case {
        int bits;
        ggml_type type;
        double largest_first;  // error before any shift: that the rows are read in the right basis
    };
    for (const Case& c : {Case{8, GGML_TYPE_Q8_0, 0.02}, Case{4, GGML_TYPE_Q4_0, 0.2}}) {
        const std::string format = "q" + std::to_string(c.bits);
        // Keys of every layer but the first depend on what attention makes of cold rows, so each cache is
        // compared with a context of its own kind that keeps the same keys exact: the one before the shifts,
        // for what it has stored; and the first layer with the host's F16.
        double first[2], last[2];
        std::uint64_t reencodes = 0;
        for (const bool is_ours : {false, true}) {
            if (is_ours) configure("k=" + format + ",v=" + format + ",window=0,sinks=0");
            const auto context = is_ours ? start(ours) : start(host, c.type);
            // One more token, so that all pages of the prompt freeze.
            context->decode({20}, kTokens);
            context->remove(0, kTokens, -1);
            const SavedRows before = saved_keys(*context);
            mixed_kv_counters counters;
            plugin_api().counters(&counters);
            reencodes = counters.reencodes;
            const SavedRows exact = saved_keys(*start(host));
            SavedRows first_layer = before, exact_layer = exact;
            first_layer.layers.resize(1);
            exact_layer.layers.resize(1);
            first[is_ours] = error(first_layer, exact_layer, 0);
            for (int i = 0; i < kShifts; ++i) shift_all(*context, 5);
            SavedRows after = saved_keys(*context);
            after.layers.resize(1);
            last[is_ours] = error(after, exact_layer, 5.0 * kShifts);
            plugin_api().counters(&counters);
            if (is_ours) {
                EXPECT_EQ(counters.reencodes, reencodes);
            }
        }
        std::printf("%s %d bits: host %.5f, after %d shifts %.5f; ours %.5f, after %.5f\n", GetParam().preset,
                    c.bits, first[0], kShifts, last[0], first[1], last[1]);
        EXPECT_LT(first[0], c.largest_first);
        EXPECT_LT(first[1], c.largest_first);
        EXPECT_LE(last[1], last[0]) << "no worse than the host's at equal bits";
        EXPECT_LE(last[1], first[1] * 1.01 + 1e-3) << "nothing is lost";
    }
}

// Sinks and the window, and a cache that is hot throughout.
TEST_P(ShiftDrift, ExactRowsTurnAsTheHostsDo) {
    const Model host(path_, CacheOwner::kHost), ours(path_, CacheOwner::kPlugin);
    for (const bool all_hot : {false, true}) {
        configure(all_hot ? "window=100000" : "k=q4,v=q4,window=64,sinks=4");
        const auto expected = start(host), actual = start(ours);
        std::size_t n_values = 0, n_equal = 0;
        for (int shift = 1; shift <= kShifts; ++shift) {
            shift_all(*expected, -3 + 8 * (shift % 2));
            shift_all(*actual, -3 + 8 * (shift % 2));
            if (shift != 1 && shift != kShifts) continue;
            // The first layer's keys follow from token and position alone.
            const SavedRows a = saved_keys(*expected), b = saved_keys(*actual);
            for (std::size_t cell = 0; cell < kTokens; ++cell) {
                if (!all_hot && cell >= 4 && cell < kTokens - 64) continue;
                for (std::size_t i = 0; i < a.row_elements; ++i) {
                    const float x = a.layers[0].values[cell * a.row_elements + i];
                    const float y = b.layers[0].values[cell * b.row_elements + i];
                    // Half a step of binary16 each time, relative to a pair of at most about 8.
                    ASSERT_NEAR(y, x, shift * 0x1p-9) << "cell " << cell << " after " << shift;
                    ++n_values;
                    n_equal += x == y ? 1 : 0;
                }
            }
        }
        std::printf("%s, %s: %.4f %% of exact values equal the host's bit for bit\n", GetParam().preset,
                    all_hot ? "all hot" : "window and sinks", 100.0 * double(n_equal) / double(n_values));
        EXPECT_GT(double(n_equal), 0.99 * double(n_values));
    }
}

// The host multiplies every key by YaRN's attention factor at each shift, moved or not. A key has it from the
// start; the right key after a shift has the direction that the host gives it and the length that it had.
TEST_P(ShiftDrift, KeysUnderYarnKeepTheirLengths) {
    const Model host(path_, CacheOwner::kHost), ours(path_, CacheOwner::kPlugin);
    configure("window=100000");
    for (const std::size_t n_keep : {0u, 32u, 200u}) {
        ContextOptions options;
        options.n_ctx = 512;
        options.n_ubatch = 64;
        options.n_threads = 1;
        options.yarn_factor = 4.0f;
        SavedRows before, after[2];
        for (const bool is_ours : {false, true}) {
            Context context(is_ours ? ours : host, options);
            context.decode(random_tokens(kTokens, 512, 7));
            if (!is_ours) before = saved_keys(context);
            context.shift(0, llama_pos(n_keep), -1, 3);
            const llama_pos last = context.last_position(0);
            context.decode({20}, last + 1);
            context.remove(0, last + 1, -1);
            after[is_ours] = saved_keys(context);
        }
        SavedRows ideal = after[0];
        for (std::size_t layer = 0; layer < ideal.layers.size(); ++layer) {
            for (std::size_t i = 0; i < kTokens * ideal.row_elements; i += 64) {
                for (std::size_t pair = 0; pair < 32; ++pair) {
                    const std::size_t a = i + (GetParam().interleaved ? 2 * pair : pair);
                    const std::size_t b = GetParam().interleaved ? a + 1 : a + 32;
                    const std::vector<float>& old = before.layers[layer].values;
                    std::vector<float>& now = ideal.layers[layer].values;
                    const double scale =
                        std::hypot(old[a], old[b]) / std::max(1e-9, double(std::hypot(now[a], now[b])));
                    now[a] = float(now[a] * scale);
                    now[b] = float(now[b] * scale);
                }
            }
        }
        // Layers after the first have slightly different rows to begin with.
        for (SavedRows* rows : {&ideal, &after[0], &after[1]}) rows->layers.resize(1);
        const double theirs = relative_rms(after[0], ideal, 0, kTokens);
        const double mine = relative_rms(after[1], ideal, 0, kTokens);
        std::printf("%s, YaRN x 4, n_keep %zu: host %.5f, ours %.5f\n", GetParam().preset, n_keep, theirs,
                    mine);
        EXPECT_LE(mine, theirs);
        EXPECT_LE(mine, 1e-3) << "rounding to binary16";
        EXPECT_GT(theirs, 1e-2) << "the host has no attention factor here: this test tests nothing";
    }
}

INSTANTIATE_TEST_SUITE_P(Architectures, ShiftDrift,
                         testing::Values(Architecture{"llama", true}, Architecture{"qwen2", false}),
                         [](const auto& each) { return std::string(each.param.preset); });

// A text longer than its context, kept going by context shifts: next-token distributions against the host's
// F16 cache that goes through the same shifts.
TEST(ContextShift, GoesOnAsWellAsInTheHostsCaches) {
    if (!std::ifstream(MIXED_KV_MODEL)) GTEST_SKIP() << "no bundled model at " << MIXED_KV_MODEL;
    load_backends();
    const Model host(MIXED_KV_MODEL, CacheOwner::kHost), ours(MIXED_KV_MODEL, CacheOwner::kPlugin);
    std::ifstream file(MIXED_KV_EVAL_TEXT);
    std::stringstream text;
    text << file.rdbuf();
    const std::string head = text.str().substr(0, 12000);
    std::vector<llama_token> tokens(12000);
    const int n = llama_tokenize(host.vocab(), head.data(), std::int32_t(head.size()), tokens.data(),
                                 std::int32_t(tokens.size()), true, false);
    constexpr int kContext = 256, kKeep = 4, kDrop = 8;
    ASSERT_GE(n, kContext + kShifts * kDrop);
    const auto run = [&](const Model& model, ggml_type type) {
        ContextOptions options;
        options.n_ctx = kContext;
        options.n_ubatch = 64;
        options.n_threads = 1;
        options.type_k = options.type_v = type;
        Context context(model, options);
        context.prefill({tokens.begin(), tokens.begin() + kContext});
        Logits logits;
        for (int shift = 0; shift < kShifts; ++shift) {
            context.remove(0, kKeep, kKeep + kDrop);
            context.shift(0, kKeep + kDrop, -1, -kDrop);
            const auto next = tokens.begin() + kContext + shift * kDrop;
            logits.append(context.decode({next, next + kDrop}, kContext - kDrop));
        }
        return logits;
    };
    const Logits exact = run(host, GGML_TYPE_F16);
    struct Case {
        const char* format;
        ggml_type type;
    };
    for (const Case& c : {Case{"q8", GGML_TYPE_Q8_0}, Case{"q4", GGML_TYPE_Q4_0}}) {
        char error[256] = "";
        const std::string format = c.format;
        // No window and no sinks: the formats alone.
        ASSERT_EQ(plugin_api().configure(("k=" + format + ",v=" + format + ",window=0,sinks=0").c_str(),
                                         error, sizeof error),
                  1)
            << error;
        const Comparison theirs = compare(exact, run(host, c.type));
        const Comparison mine = compare(exact, run(ours, GGML_TYPE_F16));
        std::printf("%s: mean KLD %.3g, the host's %.3g; top 1 equal %zu of %zu, the host's %zu\n", c.format,
                    mine.mean_kld, theirs.mean_kld, mine.top1_equal, mine.n_rows, theirs.top1_equal);
        EXPECT_LE(mine.mean_kld, theirs.mean_kld);
    }
    plugin_api().configure("", nullptr, 0);
}
