#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "common/llama_handles.h"

namespace mixed_kv::tools {

struct RunArguments {
    std::string model;
    std::string prompt;
    int n_predict = 128;
    std::optional<std::uint32_t> n_ctx;  // as asked; 0: as long as the model was trained for
    ContextOptions context;              // batch sizes, threads, cache types, flash attention
    float temperature = 0.8F;
    std::uint32_t seed = 0;
    int n_gpu_layers = -1;
    bool compare = false;
    bool json = false;
    bool mixed = true;
    bool warm_up = true;
    bool ignore_eos = false;  // an end-of-text token is a token like any other
    bool verbose = false;
};

// nullopt: --help was asked for and printed. Throws UsageError, and std::runtime_error for a prompt file that
// cannot be read. Exports the cache's settings to the environment.
std::optional<RunArguments> parse_run_arguments(int argc, char** argv);

}  // namespace mixed_kv::tools
