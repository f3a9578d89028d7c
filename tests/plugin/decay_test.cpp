// A row is rounded once: rows that stay read the same, bit for bit, whatever is written, removed, shifted or
// restored beside them, and a state that is saved and restored again and again loses no more than one further
// rounding.
#include <ggml.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <optional>
#include <sstream>
#include <string>

#include "mixed_kv/cold_format.h"
#include "plugin_test.h"
#include "random_model.h"
#include "saved_rows.h"

using namespace mixed_kv::test;

namespace {

// MIXED_KV_DECAY_ROUNDS: how often; the long target says 1000.
int rounds(int fast) {
    const char* text = std::getenv("MIXED_KV_DECAY_ROUNDS");
    return text == nullptr ? fast : std::max(fast, std::atoi(text));
}

constexpr int kVocabulary = 512;

// Sliding windows are so long that rows grow cold inside of them.
const std::string& model_file(const std::string& preset) {
    RandomModelSpec spec = random_model_spec(preset);
    if (spec.n_swa > 0) spec.n_swa = 256;
    return random_model_file(spec);
}

struct Models {
    explicit Models(const std::string& preset)
        : host(model_file(preset), CacheOwner::kHost), ours(model_file(preset), CacheOwner::kPlugin) {}
    Model host, ours;
};

void configure(const std::string& settings) {
    char error[256] = "";
    ASSERT_EQ(plugin_api().configure(settings.c_str(), error, sizeof error), 1) << error;
}

ContextOptions options(std::uint32_t n_ctx, std::uint32_t n_seq = 1) {
    ContextOptions o;
    o.n_ctx = n_ctx;
    o.n_ubatch = 64;
    o.n_threads = 1;
    o.n_seq_max = n_seq;
    o.kv_unified = n_seq > 1;
    o.swa_full = true;  // or a sequence with sliding windows could not go back to its opening
    return o;
}

// Every tensor of the newest cache within the formula of docs/memory.md for n rows that grew one by one, and
// two FP16 pages: what a server may take that keeps an opening. window and sinks as SetUp() has them.
void expect_memory_of(std::uint64_t n_rows) {
    std::vector<mixed_kv_tensor_info> tensors(64);
    tensors.resize(plugin_api().tensors(tensors.data(), tensors.size()));
    ASSERT_FALSE(tensors.empty());
    for (const mixed_kv_tensor_info& t : tensors) {
        const std::uint64_t row = 2 * std::uint64_t(t.n_head * t.head_dim), page = 64 * row;
        const std::uint64_t pages = (n_rows + 63) / 64, frozen = (n_rows - 32) / 64;
        const std::uint64_t formula =
            (pages - frozen) * page + frozen * t.block_bytes * std::uint64_t(t.n_head) + 4 * row;
        EXPECT_LE(t.hot_bytes + t.cold_bytes + t.overlay_bytes, formula + 2 * page) << t.name;
    }
}

// Whether the rows at positions below n that both have are the same, bit for bit (as floats of binary16
// values); false where there are none.
bool same_rows(const SavedRows& a, const SavedRows& b, std::size_t n) {
    if (a.layers.empty() && b.layers.empty()) return true;  // MLA has no values
    std::size_t all = 0;
    for (std::size_t layer = 0; layer < a.layers.size(); ++layer) {
        std::size_t compared = 0;
        for (std::size_t position = 0; position < n; ++position) {
            const float* one = a.row(layer, std::int32_t(position));
            const float* other = b.row(layer, std::int32_t(position));
            if (one == nullptr || other == nullptr) continue;
            ++compared;
            if (std::memcmp(one, other, a.row_elements * sizeof(float)) != 0) return false;
        }
        all += compared;
    }
    return all > 0;
}

struct Rows {
    explicit Rows(const Context& context, llama_seq_id sequence = 0)
        : keys(saved_keys(context, sequence)), values(saved_values(context, sequence)) {}
    bool same(const Rows& other, std::size_t n) const {
        return same_rows(keys, other.keys, n) && same_rows(values, other.values, n);
    }
    // Of the first layer, whose rows follow from tokens and positions alone; with sliding windows it is the
    // first of the windows' cache.
    double error(const Rows& exact, std::size_t first, std::size_t n) const {
        const auto one = [&](const SavedRows& rows, const SavedRows& truth) {
            if (truth.layers.empty()) return 0.0;
            const int last_cache = truth.layers.back().cache;
            std::size_t layer = 0;
            while (truth.layers[layer].cache != last_cache) ++layer;
            return relative_rms(rows, truth, first, n, layer);
        };
        return std::max(one(keys, exact.keys), one(values, exact.values));
    }
    SavedRows keys, values;
};

struct Case {
    std::string preset, format;
};

std::string name_of(const Case& c) { return c.preset + "_" + c.format; }

// Every format on a llama; on MLA and on sliding windows three of them.
std::vector<Case> cases() {
    std::vector<Case> all;
    for (const char* preset : {"llama", "deepseek2", "gemma2"}) {
        for (const char* format : {"q8", "q6", "q5", "q4", "q3", "q2"}) {
            const bool few =
                format == std::string("q8") || format == std::string("q4") || format == std::string("q2");
            if (few || preset == std::string("llama")) all.push_back({preset, format});
        }
    }
    return all;
}

class Decay : public testing::TestWithParam<Case> {
  protected:
    void SetUp() override {
        load_backends();
        configure("k=" + GetParam().format + ",v=" + GetParam().format + ",window=32,sinks=4");
        models_.emplace(GetParam().preset);
    }
    void TearDown() override { plugin_api().configure("", nullptr, 0); }
    std::string name() const { return name_of(GetParam()); }
    const Model& host_model() const { return models_->host; }
    const Model& our_model() const { return models_->ours; }

  private:
    std::optional<Models> models_;
};

}  // namespace

// A server with a fixed system prompt, request after request behind it.
TEST_P(Decay, KeptOpening) {
    for (const std::size_t opening : {46u, 110u}) {
        Context context(our_model(), options(1024)), host(host_model(), options(1024));
        const auto head = random_tokens(opening, kVocabulary, 1);
        context.decode(head);
        host.decode(head);
        const auto request = [&](int round) {
            context.remove(0, llama_pos(opening), -1);
            context.decode(
                random_tokens(100 + std::size_t(round % 40), kVocabulary, 100 + std::uint64_t(round)),
                llama_pos(opening));
        };
        // Its last rows are within the windows of a model that has them once nothing follows.
        const auto rows = [&] {
            context.remove(0, llama_pos(opening), -1);
            return Rows(context);
        };
        request(0);
        request(1);
        const Rows first = rows();
        const int n = rounds(31);
        for (int round = 2; round < n; ++round) request(round);
        // The longest request's rows have not been overwritten. Rows that left a model's own window stay as
        // they are until they are overwritten.
        if (GetParam().preset != "gemma2") expect_memory_of(opening + 139);
        const Rows last = rows();
        EXPECT_TRUE(last.same(first, opening)) << opening << " rows after " << n << " requests";
        std::printf("%s, opening of %zu: error %.4f after 2 requests, %.4f after %d\n", name().c_str(),
                    opening, first.error(Rows(host), 4, opening - 4), last.error(Rows(host), 4, opening - 4),
                    n);
        EXPECT_GT(first.error(Rows(host), 4, opening - 4), 1e-4)
            << "nothing was rounded: this test tests nothing";
    }
}

// Two sequences interleaved in a unified cache; one is replaced again and again.
TEST_P(Decay, IdleNeighbour) {
    Context context(our_model(), options(512, 2));
    const auto tokens = random_tokens(200, kVocabulary, 3);
    for (int i = 0; i < 160; i += 8) {
        std::vector<BatchToken> batch;
        for (int j = i; j < i + 8; ++j) {
            for (const llama_seq_id sequence : {0, 1})
                batch.push_back({tokens[std::size_t(j)], j, {sequence}, false});
        }
        batch.back().wants_logits = true;
        context.decode_batch(batch);
    }
    const auto replace = [&](int round) {
        context.remove(1, -1, -1);
        context.decode(random_tokens(150, kVocabulary, 50 + std::uint64_t(round)), 0, 1);
    };
    replace(0);
    const Rows first(context);
    const int n = rounds(31);
    for (int round = 1; round < n; ++round) replace(round);
    EXPECT_TRUE(Rows(context).same(first, 120)) << "the idle sequence's rows after " << n << " neighbours";
}

// Generation without end: context shifts with a kept opening.
TEST_P(Decay, ContextShiftKeepsTheOpening) {
    constexpr int kKeep = 110, kDrop = 40, kContext = 512;
    Context context(our_model(), options(kContext));
    context.decode(random_tokens(kContext, kVocabulary, 5));
    const auto shift = [&](int round) {
        context.remove(0, kKeep, kKeep + kDrop);
        context.shift(0, kKeep + kDrop, -1, -kDrop);
        context.decode(random_tokens(kDrop, kVocabulary, 70 + std::uint64_t(round)), kContext - kDrop);
    };
    shift(0);
    const Rows first(context);
    const int n = rounds(32);
    for (int round = 1; round < n; ++round) shift(round);
    EXPECT_TRUE(Rows(context).same(first, kKeep)) << "the kept rows after " << n << " shifts";
}

// llama-server's prompt cache: a sequence saved, its cells given to others, restored elsewhere.
TEST_P(Decay, ParkedStates) {
    constexpr std::size_t kTokens = 330;
    Context context(our_model(), options(1024, 2)), host(host_model(), options(1024));
    const auto tokens = random_tokens(kTokens, kVocabulary, 9);
    context.decode(random_tokens(29, kVocabulary, 8), 0,
                   1);  // so that its groups of 64 are not those of pages
    context.decode(tokens);
    context.decode({7}, kTokens);  // so that all pages behind the window freeze
    context.remove(0, kTokens, -1);
    host.decode(tokens);
    const Rows exact(host);
    // Rows in no full group or in the window are exact.
    const double first = Rows(context).error(exact, 4, 250);
    const int n = rounds(GetParam().preset == "llama" ? 100 : 20);
    double worst = 0;
    for (int round = 0; round < n; ++round) {
        const auto state = context.save_sequence(0);
        context.clear(round % 2 == 0);
        // Others take cells in front of it.
        context.decode(
            random_tokens(1 + std::size_t(round * 29 % 200), kVocabulary, 200 + std::uint64_t(round)), 0, 1);
        context.restore_sequence(0, state);
        if (round % 10 == 9 || round < 3) worst = std::max(worst, Rows(context).error(exact, 4, 250));
    }
    std::printf("%s: error %.4f, after %d returns %.4f (%.2f x)\n", name().c_str(), first, n, worst,
                worst / first);
    EXPECT_LE(worst, 1.5 * first);
}

// Values of another size restored into the gaps between an idle sequence's rows, whole or half-way.
TEST_P(Decay, ForeignRows) {
    double alone = 0;
    for (const float size : {0.0f, 20.0f, 100.0f, 1024.0f}) {
        for (const bool whole : {true, false}) {
            Context context(our_model(), options(512, 3)), host(host_model(), options(512));
            const auto tokens = random_tokens(160, kVocabulary, 3);
            for (int i = 0; i < 128; i += 4) {
                std::vector<BatchToken> batch;
                for (int j = i; j < i + 4; ++j) {
                    batch.push_back({tokens[std::size_t(j)], j, {0}, false});
                    batch.push_back({tokens[std::size_t(j)], j, {1}, false});
                }
                batch.back().wants_logits = true;
                context.decode_batch(batch);
            }
            host.decode({tokens.begin(), tokens.begin() + 128});
            auto state = context.save_sequence(1);
            context.remove(1, -1, -1);
            if (size > 0) {
                // Every row's values, where rows lie: behind the cells' records, before the last layer's end.
                auto* values = state.data();
                for (std::size_t at = state.size() / 2 & ~std::size_t{1}; at + 2 <= state.size() - 64;
                     at += 2) {
                    std::uint16_t bits;
                    std::memcpy(&bits, values + at, 2);
                    const float value = ggml_fp16_to_fp32(bits);
                    if (!(std::fabs(value) < 30.0f) || std::fabs(value) < 1e-4f) continue;
                    const std::uint16_t scaled = ggml_fp32_to_fp16(value * size);
                    std::memcpy(values + at, &scaled, 2);
                }
            }
            if (whole) {
                context.restore_sequence(1, state);
            } else {
                state.resize(state.size() * 3 / 4);
                try {
                    context.restore_sequence(1, state);
                    ADD_FAILURE() << "half a state was accepted";
                } catch (const std::runtime_error&) {
                }
            }
            // Others go on until everything of the idle one that freezes has frozen.
            context.decode(random_tokens(150, kVocabulary, 4), 0, 2);
            const double error = Rows(context).error(Rows(host), 4, 124);
            if (size == 0) alone = std::max(alone, error);
            std::printf("%s, foreign rows %g times as large, %s: %.4f\n", name().c_str(), double(size),
                        whole ? "whole" : "refused half-way", error);
            if (size > 0) {
                EXPECT_LE(error, 1.2 * alone);
            }
        }
    }
}

namespace {

std::string eval_text() {
    std::ifstream file(MIXED_KV_EVAL_TEXT);
    std::stringstream text;
    text << file.rdbuf();
    return text.str();
}

std::vector<llama_token> tokenize(const Model& model, const std::string& text, bool add_bos) {
    std::vector<llama_token> tokens(text.size() + 2);
    const int n = llama_tokenize(model.vocab(), text.data(), std::int32_t(text.size()), tokens.data(),
                                 std::int32_t(tokens.size()), add_bos, false);
    tokens.resize(std::size_t(std::max(n, 0)));
    return tokens;
}

}  // namespace

// What a user of a server sees, at default settings: the next tokens behind an opening that many requests
// have followed, beside the host's F16 cache that went through the same.
TEST(DecayOfText, TheBundledModelKeepsItsOpening) {
    if (!std::ifstream(MIXED_KV_MODEL)) GTEST_SKIP() << "no bundled model at " << MIXED_KV_MODEL;
    load_backends();
    configure("");
    const Model host(MIXED_KV_MODEL, CacheOwner::kHost), ours(MIXED_KV_MODEL, CacheOwner::kPlugin);
    const auto tokens = tokenize(host, eval_text().substr(0, 40000), true);
    constexpr int kOpening = 297, kProbe = 200;
    ASSERT_GT(tokens.size(), 8000u);
    const auto slice = [&](int first, int n) {
        return std::vector<llama_token>(tokens.begin() + first, tokens.begin() + first + n);
    };
    Context context(ours, options(1024)), exact(host, options(1024));
    context.decode(slice(0, kOpening));
    exact.decode(slice(0, kOpening));
    const auto request = [&](Context& c, int round) {
        c.remove(0, kOpening, -1);
        c.prefill(slice(kOpening + kProbe + round * 97 % 6000, 60 + round * 31 % 90), kOpening);
    };
    // Behind the same request, so that the probe's own rows find the pages alike.
    const auto probe = [&](Context& c) {
        request(c, 7);
        c.remove(0, kOpening, -1);
        return c.decode(slice(kOpening, kProbe), kOpening);
    };
    // Until all rows of the opening that freeze have frozen.
    constexpr int kFirst = 8;
    for (Context* c : {&context, &exact}) {
        for (int round = 0; round < kFirst; ++round) request(*c, round);
    }
    probe(context);  // so that its cells have been written before
    const Logits truth = probe(exact), first = probe(context);
    const int n = rounds(24);
    for (int round = kFirst; round < n; ++round) request(context, round);
    const Logits last = probe(context);
    const Comparison before = compare(truth, first), after = compare(truth, last);
    std::printf("opening of %d tokens, %d requests: mean KLD %.3g -> %.3g, top token %zu -> %zu of %zu\n",
                kOpening, n, before.mean_kld, after.mean_kld, before.top1_equal, after.top1_equal,
                before.n_rows);
    EXPECT_EQ(first.values, last.values) << "logits are equal bit for bit";
}

// Facts in the opening's last page, asked for when many requests have followed it.
TEST(DecayOfText, TheBundledModelRecallsItsOpening) {
    if (!std::ifstream(MIXED_KV_MODEL)) GTEST_SKIP() << "no bundled model at " << MIXED_KV_MODEL;
    load_backends();
    configure("");
    const Model host(MIXED_KV_MODEL, CacheOwner::kHost), ours(MIXED_KV_MODEL, CacheOwner::kPlugin);
    const std::vector<std::pair<std::string, std::string>> facts{{"Bondy", "apple"}, {"Cleon", "door"},
                                                                 {"Berna", "army"},  {"Korrie", "lamb"},
                                                                 {"Davie", "paper"}, {"Lexie", "hand"}};
    std::string planted;
    for (const auto& [name, value] : facts) planted.append(" Remember: " + name + " " + value + ".");
    const auto text = tokenize(host, eval_text().substr(0, 40000), true);
    const auto last_page = tokenize(host, planted, false);
    // The facts are all of the opening's fifth page.
    ASSERT_LT(last_page.size(), 60u);
    std::vector<llama_token> opening(text.begin() + 1, text.begin() + 260);
    opening.insert(opening.begin(), text[0]);
    opening.resize(256);
    opening.insert(opening.end(), last_page.begin(), last_page.end());
    const auto end = llama_pos(opening.size());
    const auto n_right = [&](Context& c) {
        std::size_t right = 0;
        for (const auto& [name, value] : facts) {
            c.remove(0, end, -1);
            const auto question = tokenize(host, " Remember: " + name, false);
            const Logits logits = c.decode(question, end);
            right += logits.top(logits.n_rows() - 1) ==
                     tokenize(host, " Remember: " + name + " " + value, false)[question.size()];
        }
        return right;
    };
    Context context(ours, options(1024)), exact(host, options(1024));
    const auto request = [&](int round) {
        context.remove(0, end, -1);
        context.prefill({text.begin() + 300 + round * 97 % 6000,
                         text.begin() + 300 + round * 97 % 6000 + 60 + round * 31 % 90},
                        end);
    };
    context.decode(opening);
    exact.decode(opening);
    request(0);
    request(1);
    const std::size_t before = n_right(context);
    const int n = rounds(24);
    for (int round = 2; round < n; ++round) request(round);
    std::printf("recall of the opening's last page: host %zu, after 2 requests %zu, after %d %zu of %zu\n",
                n_right(exact), before, n, n_right(context), facts.size());
    EXPECT_EQ(n_right(exact), facts.size());
    EXPECT_EQ(before, facts.size());
    EXPECT_EQ(n_right(context), facts.size());
}

INSTANTIATE_TEST_SUITE_P(Models, Decay, testing::ValuesIn(cases()),
                         [](const auto& each) { return name_of(each.param); });
