#pragma once

#include <llama.h>

#include <cstdint>
#include <vector>

#include "common/plugin.h"
#include "kqv-trace-monitor/arguments.h"

namespace mixed_kv::tools {

struct SessionResult {
    int64_t n_steps = 0;   // evaluated
    int64_t n_traced = 0;  // of them recorded
    int64_t n_records = 0;
    std::vector<llama_token> tokens;  // generated
};

// Loads the model, runs the prompt and generates, recording on the way; the trace file is complete when this
// returns. Throws std::runtime_error. plugin: null for llama.cpp's own cache.
SessionResult run_session(const MonitorArguments& arguments, Plugin* plugin);

}  // namespace mixed_kv::tools
