#include "random_model.h"

#include "gguf_model_writer.h"
#include "random_model_architectures.h"

#include <stdexcept>

namespace mixed_kv::test {

namespace {

constexpr const char* kWeightTypeNames[] = {"f32", "f16", "q8_0", "q4_0"};

RandomModelSpec make_spec(const std::string& architecture, std::uint32_t n_layer, std::uint32_t n_embd,
                          std::uint32_t n_head, std::uint32_t n_head_kv, std::uint32_t head_dim) {
    RandomModelSpec spec;
    spec.architecture = architecture;
    spec.n_layer = n_layer;
    spec.n_embd = n_embd;
    spec.n_head = n_head;
    spec.n_head_kv = n_head_kv;
    spec.head_dim = head_dim;
    return spec;
}

struct Traits {
    bool has_kv_cache = true;
    bool has_recurrent_state = false;
    bool shares_kv = false;
    bool benchmark_only = false;
};

std::vector<RandomModelPreset> make_presets() {
    std::vector<RandomModelPreset> presets;
    const auto add = [&](const char* name, const char* description, RandomModelSpec spec,
                         Traits traits = {}) {
        spec.preset = name;
        presets.push_back({name, description, traits.has_kv_cache, traits.has_recurrent_state,
                           traits.shares_kv, traits.benchmark_only, spec});
    };
    const auto with_window = [](RandomModelSpec spec, std::uint32_t n_swa) {
        spec.n_swa = n_swa;
        return spec;
    };

    add("llama", "GQA 4, head_dim 64", make_spec("llama", 3, 256, 8, 2, 64));
    add("llama-hd128", "GQA 4, head_dim 128", make_spec("llama", 2, 256, 8, 2, 128));
    add("llama-hd80", "GQA 4, head_dim 80", make_spec("llama", 2, 320, 8, 2, 80));
    add("qwen2", "Q, K and V bias", make_spec("qwen2", 3, 256, 4, 2, 64));
    add("qwen3", "normalised Q and K", make_spec("qwen3", 3, 256, 4, 2, 128));
    add("phi3", "fused QKV, head_dim 96", make_spec("phi3", 2, 384, 4, 2, 96));
    add("mpt", "ALiBi, 6 heads without GQA", make_spec("mpt", 2, 384, 6, 6, 64));
    {
        RandomModelSpec spec = with_window(make_spec("gemma2", 4, 256, 2, 1, 256), 64);
        spec.n_ff = 128;
        add("gemma2", "interleaved sliding window, soft-capped scores, head_dim 256", spec);
    }
    {
        RandomModelSpec spec = with_window(make_spec("gemma3n", 22, 64, 2, 1, 64), 64);
        spec.n_ff = 128;
        spec.n_vocab = 320;
        spec.attention_sigma = 1.2f;  // 22 layers amplify differences: keep each one tame
        add("gemma3n", "sliding window, layers from 20 on share KV", spec, {.shares_kv = true});
    }
    add("gemma4", "sliding window with a smaller head_dim, last 2 layers share KV",
        with_window(make_spec("gemma4", 6, 128, 4, 2, 128), 64), {.shares_kv = true});
    add("gpt-oss", "learned attention sinks, sliding window, mixture of experts",
        with_window(make_spec("gpt-oss", 4, 256, 8, 2, 64), 64));
    add("deepseek2", "MLA: V (512) is a view of K (576), 4 query heads on one KV head",
        make_spec("deepseek2", 2, 256, 4, 1, 128));
    add("mamba", "recurrent state only", make_spec("mamba", 3, 256, 0, 0, 0),
        {.has_kv_cache = false, .has_recurrent_state = true});
    add("jamba", "recurrent and attention layers in turn, no RoPE", make_spec("jamba", 4, 256, 4, 2, 64),
        {.has_recurrent_state = true});
    {
        RandomModelSpec spec = make_spec("llama", 16, 2048, 32, 8, 64);
        spec.n_ff = 8192;
        spec.n_vocab = 32000;
        spec.n_ctx_train = 131072;
        spec.weight_type = WeightType::kQ4_0;
        add("llama-1b", "the shape of Llama-3.2-1B with a smaller vocabulary, Q4_0", spec,
            {.benchmark_only = true});
    }
    return presets;
}

/// A SentencePiece-style vocabulary: control tokens, bytes, a space mark, letters, then words that no text
/// contains.
void add_tokenizer(GgufModelWriter& writer, std::uint32_t n_vocab) {
    enum TokenType : std::int32_t { kNormal = 1, kUnknown = 2, kControl = 3, kByte = 6 };
    const std::string space = "\xe2\x96\x81";  // U+2581
    std::vector<std::string> tokens = {"<unk>", "<s>", "</s>"};
    std::vector<std::int32_t> types = {kUnknown, kControl, kControl};
    const auto add = [&](const std::string& text, TokenType type) {
        tokens.push_back(text);
        types.push_back(type);
    };
    for (int byte = 0; byte < 256; byte++) {
        static constexpr char kHex[] = "0123456789ABCDEF";
        add(std::string("<0x") + kHex[byte >> 4] + kHex[byte & 15] + ">", kByte);
    }
    add(space, kNormal);
    for (char letter = 'a'; letter <= 'z'; letter++) {
        add(std::string(1, letter), kNormal);
    }
    while (tokens.size() < n_vocab) {
        add(space + "w" + std::to_string(tokens.size()), kNormal);
    }
    std::vector<float> scores(tokens.size());
    for (std::size_t i = 0; i < scores.size(); i++) {
        scores[i] = -static_cast<float>(i);
    }
    writer.set("tokenizer.ggml.model", std::string("llama"));
    writer.set("tokenizer.ggml.tokens", tokens);
    writer.set("tokenizer.ggml.scores", scores);
    writer.set("tokenizer.ggml.token_type", types);
    writer.set("tokenizer.ggml.bos_token_id", std::uint32_t{1});
    writer.set("tokenizer.ggml.eos_token_id", std::uint32_t{2});
    writer.set("tokenizer.ggml.unknown_token_id", std::uint32_t{0});
    writer.set("vocab_size", n_vocab);
}

void require(bool condition, const std::string& what) {
    if (!condition) {
        throw std::invalid_argument("random model: " + what);
    }
}

}  // namespace

const char* weight_type_name(WeightType type) { return kWeightTypeNames[static_cast<int>(type)]; }

WeightType weight_type_from_name(const std::string& name) {
    for (const WeightType type : {WeightType::kF32, WeightType::kF16, WeightType::kQ8_0, WeightType::kQ4_0}) {
        if (name == weight_type_name(type)) {
            return type;
        }
    }
    throw std::invalid_argument("unknown weight type '" + name + "': f32, f16, q8_0 or q4_0");
}

const std::vector<RandomModelPreset>& random_model_presets() {
    static const std::vector<RandomModelPreset> presets = make_presets();
    return presets;
}

RandomModelSpec random_model_spec(const std::string& preset) {
    std::string names;
    for (const RandomModelPreset& candidate : random_model_presets()) {
        if (candidate.name == preset) {
            return candidate.spec;
        }
        names += " " + candidate.name;
    }
    throw std::invalid_argument("unknown random model '" + preset + "', there are:" + names);
}

std::uint64_t write_random_model(const RandomModelSpec& spec, const std::string& path) {
    require(spec.n_vocab >= kMinVocab, "n_vocab must be at least " + std::to_string(kMinVocab));
    require(spec.n_layer > 0 && spec.n_embd > 0 && spec.n_ctx_train > 0,
            "layers, width and context must be positive");
    require(spec.n_embd % 32 == 0, "n_embd must be a multiple of 32");
    require(spec.head_dim % 2 == 0, "head_dim must be even");
    if (spec.n_head > 0) {
        require(spec.n_head_kv > 0 && spec.n_head % spec.n_head_kv == 0,
                "n_head must be a multiple of n_head_kv");
    }
    GgufModelWriter writer(spec.architecture, spec.seed, spec.weight_type);
    // without the preset's name: llama.cpp looks for some names here and then expects those models' tokens
    writer.set("general.name", std::string("random weights"));
    add_tokenizer(writer, spec.n_vocab);
    add_architecture(spec, writer);
    return writer.write(path);
}

}  // namespace mixed_kv::test
