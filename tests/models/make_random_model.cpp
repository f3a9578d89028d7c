// make-random-model: writes a random-weight GGUF of a given architecture.
#include "random_model.h"

#include <CLI/CLI.hpp>

#include <cstdio>
#include <exception>
#include <functional>

using namespace mixed_kv::test;

int main(int argc, char** argv) {
    CLI::App app{"Writes a random-weight GGUF model for tests and benchmarks."};
    std::string preset = "llama", out, weights;
    bool list = false;
    RandomModelSpec given;
    app.add_flag("--list", list, "List the architectures and exit");
    app.add_option("--arch", preset, "Architecture, see --list")->capture_default_str();
    app.add_option("--out", out, "File to write");
    app.add_option("--weights", weights, "Type of the matrices: f32, f16, q8_0 or q4_0");

    // An option that was given replaces the preset's value.
    std::vector<std::function<void(RandomModelSpec&)>> overrides;
    const auto add_override = [&](const char* name, auto RandomModelSpec::*field, const char* text) {
        CLI::Option* option = app.add_option(name, given.*field, text);
        overrides.push_back([&given, option, field](RandomModelSpec& spec) {
            if (option->count() > 0) {
                spec.*field = given.*field;
            }
        });
    };
    add_override("--seed", &RandomModelSpec::seed, "Seed of the weights");
    add_override("--sigma", &RandomModelSpec::attention_sigma, "Standard deviation of the attention scores");
    add_override("--vocab", &RandomModelSpec::n_vocab, "Tokens in the vocabulary");
    add_override("--ctx-train", &RandomModelSpec::n_ctx_train, "Context length the model claims");
    add_override("--layers", &RandomModelSpec::n_layer, "Layers");
    add_override("--embd", &RandomModelSpec::n_embd, "Width of the residual stream");
    add_override("--ff", &RandomModelSpec::n_ff, "Width of the feed-forward layers");
    add_override("--heads", &RandomModelSpec::n_head, "Query heads");
    add_override("--heads-kv", &RandomModelSpec::n_head_kv, "K and V heads");
    add_override("--head-dim", &RandomModelSpec::head_dim, "Values per head");
    add_override("--swa", &RandomModelSpec::n_swa, "Sliding window in tokens");
    CLI11_PARSE(app, argc, argv);

    if (list) {
        for (const RandomModelPreset& p : random_model_presets()) {
            std::printf("%-12s %s%s\n", p.name.c_str(), p.description.c_str(),
                        p.benchmark_only ? " (large)" : "");
        }
        return 0;
    }
    try {
        if (out.empty()) {
            throw std::invalid_argument("--out FILE is missing");
        }
        RandomModelSpec spec = random_model_spec(preset);
        for (const auto& apply : overrides) {
            apply(spec);
        }
        if (!weights.empty()) {
            spec.weight_type = weight_type_from_name(weights);
        }
        const std::uint64_t size = write_random_model(spec, out);
        std::printf("%s: %s, %.1f MB\n", out.c_str(), preset.c_str(), static_cast<double>(size) / 1e6);
    } catch (const std::exception& error) {
        std::fprintf(stderr, "make-random-model: %s\n", error.what());
        return 1;
    }
    return 0;
}
