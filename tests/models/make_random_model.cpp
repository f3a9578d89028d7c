// make-random-model: writes a random-weight GGUF of a given architecture.
#include "random_model.h"

#include "common/command_line.h"
#include "common/run_tool.h"

#include <cstdio>
#include <functional>
#include <optional>
#include <vector>

using namespace mixed_kv;
using namespace mixed_kv::test;

namespace {

/// Options that replace a preset's value where they are given.
class Overrides {
  public:
    template <typename Field>
    void add(tools::CommandLine& command, const char* name, Field RandomModelSpec::*field, const char* help) {
        const auto value = std::make_shared<std::optional<Field>>();
        command.option(name, *value, help);
        apply_.push_back([value, field](RandomModelSpec& spec) {
            if (*value) {
                spec.*field = **value;
            }
        });
    }
    void apply_to(RandomModelSpec& spec) const {
        for (const auto& apply : apply_) {
            apply(spec);
        }
    }

  private:
    std::vector<std::function<void(RandomModelSpec&)>> apply_;
};

void list_presets() {
    for (const RandomModelPreset& p : random_model_presets()) {
        std::printf("%-12s %s%s\n", p.name.c_str(), p.description.c_str(),
                    p.benchmark_only ? " (large)" : "");
    }
}

int run(int argc, char** argv) {
    tools::CommandLine command("make-random-model",
                               "Writes a random-weight GGUF model for tests and benchmarks.");
    std::string preset = "llama", out, weights;
    bool list = false;
    Overrides overrides;
    command.flag("--list", list, "List the architectures and exit");
    command.option("--arch", preset, "Architecture, see --list");
    command.option("--out", out, "File to write").value_name("FILE");
    command.option("--weights", weights, "Type of the matrices: f32, f16, q8_0 or q4_0");
    overrides.add(command, "--seed", &RandomModelSpec::seed, "Seed of the weights");
    overrides.add(command, "--sigma", &RandomModelSpec::attention_sigma,
                  "Standard deviation of the attention scores");
    overrides.add(command, "--vocab", &RandomModelSpec::n_vocab, "Tokens in the vocabulary");
    overrides.add(command, "--ctx-train", &RandomModelSpec::n_ctx_train, "Context length the model claims");
    overrides.add(command, "--layers", &RandomModelSpec::n_layer, "Layers");
    overrides.add(command, "--embd", &RandomModelSpec::n_embd, "Width of the residual stream");
    overrides.add(command, "--ff", &RandomModelSpec::n_ff, "Width of the feed-forward layers");
    overrides.add(command, "--heads", &RandomModelSpec::n_head, "Query heads");
    overrides.add(command, "--heads-kv", &RandomModelSpec::n_head_kv, "K and V heads");
    overrides.add(command, "--head-dim", &RandomModelSpec::head_dim, "Values per head");
    overrides.add(command, "--swa", &RandomModelSpec::n_swa, "Sliding window in tokens");
    if (!command.parse(argc, argv)) {
        return tools::kExitOk;
    }
    if (list) {
        list_presets();
        return tools::kExitOk;
    }
    if (out.empty()) {
        throw tools::UsageError("--out FILE is missing");
    }
    RandomModelSpec spec;
    try {
        spec = random_model_spec(preset);
        if (!weights.empty()) {
            spec.weight_type = weight_type_from_name(weights);
        }
    } catch (const std::invalid_argument& error) {
        throw tools::UsageError(error.what());
    }
    overrides.apply_to(spec);
    const std::uint64_t size = write_random_model(spec, out);
    std::printf("%s: %s, %.1f MB\n", out.c_str(), preset.c_str(), static_cast<double>(size) / 1e6);
    return tools::kExitOk;
}

}  // namespace

int main(int argc, char** argv) {
    return tools::run_tool("make-random-model", [&] { return run(argc, argv); });
}
