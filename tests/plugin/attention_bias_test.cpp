// A model whose attention adds a bias to its scores (T5): llama.cpp computes it without flash attention, also
// where that is on. The line about the cache says so and does not advise to turn on what is on.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>

#include "gguf_model_writer.h"
#include "plugin_test.h"

using namespace mixed_kv::test;

namespace {

constexpr std::int64_t kEmbedding = 128, kHeads = 2, kVocabulary = 64, kFeedForward = 128, kBuckets = 8;

void add_attention(GgufModelWriter& model, const std::string& prefix) {
    for (const char* name : {"q", "k", "v", "o"})
        model.add_matrix(prefix + name + ".weight", {kEmbedding, kEmbedding}, 0.1F);
}

void add_feed_forward(GgufModelWriter& model, const std::string& block) {
    model.add_f32(block + "ffn_norm.weight", {kEmbedding}, around(1, 0));
    model.add_matrix(block + "ffn_up.weight", {kEmbedding, kFeedForward}, 0.1F);
    model.add_matrix(block + "ffn_down.weight", {kFeedForward, kEmbedding}, 0.1F);
}

// An encoder and a decoder of one layer each.
void write_t5(const std::string& path) {
    GgufModelWriter model("t5", 1, WeightType::kF16);
    model.set("tokenizer.ggml.model", std::string("none"));
    const std::pair<const char*, std::int64_t> numbers[] = {{"vocab_size", kVocabulary},
                                                            {"context_length", 512},
                                                            {"embedding_length", kEmbedding},
                                                            {"block_count", 1},
                                                            {"feed_forward_length", kFeedForward},
                                                            {"attention.head_count", kHeads},
                                                            {"attention.relative_buckets_count", kBuckets}};
    for (const auto& [key, value] : numbers) model.set(key, std::uint32_t(value));
    model.set("attention.layer_norm_rms_epsilon", 1e-6F);
    model.add_matrix("token_embd.weight", {kEmbedding, kVocabulary}, 0.1F);
    for (const std::string side : {"enc.", "dec."}) {
        const std::string block = side + "blk.0.";
        model.add_f32(side + "output_norm.weight", {kEmbedding}, around(1, 0));
        model.add_f32(block + "attn_norm.weight", {kEmbedding}, around(1, 0));
        model.add_f32(block + "attn_rel_b.weight", {kHeads, kBuckets}, around(0, 0.1F));
        add_attention(model, block + "attn_");
        add_feed_forward(model, block);
    }
    model.add_f32("dec.blk.0.cross_attn_norm.weight", {kEmbedding}, around(1, 0));
    add_attention(model, "dec.blk.0.cross_attn_");
    model.write(path);
}

std::string report_of_context(const std::string& path, llama_flash_attn_type flash_attention) {
    const std::size_t before = plugin_api().report(nullptr, 0);
    const Model model(path, CacheOwner::kPlugin);
    ContextOptions options;
    options.n_ctx = 256;
    options.n_threads = 1;
    options.flash_attn = flash_attention;
    const Context context(model, options);
    std::string text(plugin_api().report(nullptr, 0) + 1, '\0');
    plugin_api().report(text.data(), text.size());
    return text.substr(before, text.find('\0') - before);
}

TEST(AttentionBias, IsNotMistakenForFlashAttentionTurnedOff) {
    const std::string path = testing::TempDir() + "/mixed-kv-t5.gguf";
    write_t5(path);
    const std::string on = report_of_context(path, LLAMA_FLASH_ATTN_TYPE_ENABLED);
    EXPECT_NE(on.find("adds a bias to its scores, which excludes flash attention"), std::string::npos) << on;
    EXPECT_EQ(on.find("-fa on"), std::string::npos) << on;
    const std::string off = report_of_context(path, LLAMA_FLASH_ATTN_TYPE_DISABLED);
    EXPECT_NE(off.find("flash attention is off (turn it on: -fa on)"), std::string::npos) << off;
    EXPECT_EQ(off.find("adds a bias"), std::string::npos) << off;
    std::remove(path.c_str());
}

}  // namespace
