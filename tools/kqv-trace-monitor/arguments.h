#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "common/llama_handles.h"

namespace mixed_kv::tools {

struct MonitorArguments {
    std::string model, prompt;
    int n_predict = 16;
    std::optional<std::uint32_t> n_ctx;  // as asked; 0: as long as the model was trained for
    ContextOptions context;              // batch sizes, threads, cache types, flash attention
    float temperature = 0.8F;
    std::uint32_t seed = 0;
    int n_gpu_layers = -1;
    int layer = -1;      // -1: all
    bool mixed = false;  // the plugin's cache
    std::string save_gguf;
    bool sources = true;
    bool compact = false;
    int max_steps = -1;  // steps to record; -1: all, 0: none
    std::string save_logits;
    bool quiet = false, verbose = false;
    std::string command_line;  // as given, for the trace
};

// nullopt: --help was asked for and printed. Throws UsageError, and std::runtime_error for a prompt file that
// cannot be read. Exports the cache's settings to the environment.
std::optional<MonitorArguments> parse_monitor_arguments(int argc, char** argv);

}  // namespace mixed_kv::tools
