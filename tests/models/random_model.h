// Random-weight GGUF models of many architectures, for tests and benchmarks that need a model's graph, shapes
// and cache traffic but not its knowledge.
//
// The weights are noise, scaled so that the model is a good test object:
//   - attention scores have a standard deviation of about `attention_sigma`, so attention is neither uniform
//   nor one
//     hot, and every layer adds about as much to the residual stream as it finds there;
//   - outputs depend on the token and on its position, and logits have a standard deviation of about 2;
//   - outputs are a smooth function of the cache. Matrices are F32, because ggml rounds what it multiplies
//   with F16 or
//     quantized weights to their precision, which turns a difference of 1e-7 somewhere into one of 1e-4 (NMSE
//     3e-7, and 5e-5 for Q8_0 weights, where F32 weights give 1e-9). Mixtures of experts use all their
//     experts, because choosing some of them is a step function.
//
// A file is a function of its spec: the same spec gives the same bytes on every machine.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace mixed_kv::test {

/// How matrices are stored. Vectors, convolutions and other small tensors are always F32.
enum class WeightType { kF32, kF16, kQ8_0, kQ4_0 };

/// The name as it is written in ggml, for example "q4_0".
const char* weight_type_name(WeightType type);

/// Throws std::invalid_argument for a name that is not one of f32, f16, q8_0, q4_0.
WeightType weight_type_from_name(const std::string& name);

/// What to write. Take one from random_model_spec() and change what the test is about.
struct RandomModelSpec {
    std::string preset;        ///< name in random_model_presets()
    std::string architecture;  ///< GGUF general.architecture
    std::uint64_t seed = 1;
    WeightType weight_type = WeightType::kF32;
    float attention_sigma = 2.0f;  ///< wanted standard deviation of the attention scores

    std::uint32_t n_vocab = 512;  ///< at least kMinVocab
    std::uint32_t n_ctx_train = 4096;
    std::uint32_t n_layer = 3;
    std::uint32_t n_embd = 256;
    std::uint32_t n_ff = 256;
    std::uint32_t n_head = 8;
    std::uint32_t n_head_kv = 2;
    std::uint32_t head_dim = 64;  ///< of Q, K and V; for MLA of the decompressed query without RoPE
    std::uint32_t n_swa = 0;      ///< sliding window in tokens, 0 = none

    bool operator==(const RandomModelSpec&) const = default;
    std::uint32_t n_embd_target = 0;  ///< gemma4-assistant: n_embd of the model whose K and V it reads
};

/// <unk>, <s>, </s>, 256 byte tokens, a space mark and the 26 letters.
inline constexpr std::uint32_t kMinVocab = 286;

/// First token that is no control token: random prompts draw from [kFirstPlainToken, n_vocab).
inline constexpr std::int32_t kFirstPlainToken = 3;
inline constexpr std::int32_t kBosToken = 1;

/// What the host does with a preset's cache, as found with llama.cpp v0.5.0. Tests expect it.
struct RandomModelPreset {
    std::string name;
    std::string description;
    bool has_kv_cache;         ///< false for purely recurrent models
    bool has_recurrent_state;  ///< cache_r / cache_s tensors
    bool shares_kv;            ///< some layers attend to another layer's K and V
    bool benchmark_only;       ///< too large for a test of every architecture
    RandomModelSpec spec;
};

/// All presets, in a fixed order.
const std::vector<RandomModelPreset>& random_model_presets();

/// The spec of a preset. Throws std::invalid_argument, naming the presets, for an unknown name.
RandomModelSpec random_model_spec(const std::string& preset);

/// Writes the model to `path` and returns the file's size in bytes. The file appears under its name only when
/// it is complete. Memory use is bounded whatever the model's size. Throws std::invalid_argument for a spec
/// that the architecture cannot take, std::runtime_error when the file cannot be written.
std::uint64_t write_random_model(const RandomModelSpec& spec, const std::string& path);

}  // namespace mixed_kv::test
