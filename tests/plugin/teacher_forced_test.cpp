// The bundled model with a window over the whole context: storage is exact, so next tokens are those of the
// host's own F16 cache wherever the host itself is sure of them.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <sstream>

#include "plugin_test.h"

using namespace mixed_kv::test;

namespace {

constexpr std::size_t kPositions = 512;

std::vector<llama_token> held_out_tokens(const Model& model) {
    std::ifstream file(MIXED_KV_EVAL_TEXT);
    std::stringstream text;
    text << file.rdbuf();
    const std::string head = text.str().substr(0, 8000);
    std::vector<llama_token> tokens(8000);
    const int n = llama_tokenize(model.vocab(), head.data(), std::int32_t(head.size()), tokens.data(),
                                 std::int32_t(tokens.size()), true, false);
    tokens.resize(std::min<std::size_t>(kPositions, std::size_t(std::max(0, n))));
    return tokens;
}

Logits run(const Model& model, const std::vector<llama_token>& tokens, unsigned ubatch) {
    ContextOptions options;
    options.n_ctx = 1024;
    options.n_batch = options.n_ubatch = ubatch;
    options.n_threads = 1;
    return Context(model, options).decode(tokens);
}

float top2_margin(const Logits& logits, std::size_t row) {
    std::vector<float> sorted(logits.row(row), logits.row(row) + logits.n_vocab);
    std::partial_sort(sorted.begin(), sorted.begin() + 2, sorted.end(), std::greater<float>());
    return sorted[0] - sorted[1];
}

}  // namespace

TEST(TeacherForced, NextTokensAreTheHostsWithinItsOwnError) {
    if (!std::ifstream(MIXED_KV_MODEL)) GTEST_SKIP() << "no bundled model at " << MIXED_KV_MODEL;
    const Model host(MIXED_KV_MODEL, CacheOwner::kHost), ours(MIXED_KV_MODEL, CacheOwner::kPlugin);
    const auto tokens = held_out_tokens(host);
    ASSERT_EQ(tokens.size(), kPositions);

    // The host's attention works in float32 tiles for ubatches of 64 and more, and accumulates values in FP16
    // below: the difference is the error of its token-by-token generation.
    const Logits exact = run(host, tokens, 64);
    const Logits expected = run(host, tokens, 1);
    const Logits actual = run(ours, tokens, 1);
    double host_error = 0;
    for (std::size_t i = 0; i < exact.values.size(); ++i) {
        host_error = std::max(host_error, double(std::fabs(exact.values[i] - expected.values[i])));
    }
    int disagreements = 0;
    for (std::size_t row = 0; row < kPositions; ++row) {
        if (actual.top(row) == expected.top(row)) continue;
        ++disagreements;
        EXPECT_LT(top2_margin(expected, row), 2 * host_error) << "position " << row;
    }
    std::printf("%zu positions, %d disagreements, host error %.2e, ours %.2e\n", kPositions, disagreements,
                host_error, compare(exact, actual).max_abs);
    EXPECT_LE(disagreements, 5);
}
