#pragma once

#include <llama.h>

#include <cstdint>

#include "kqv-trace-monitor/arguments.h"
#include "trace/trace_writer.h"

namespace mixed_kv::tools {

// What the run will record, from the model's shape and the cache's settings.
trace::TraceEstimate estimate_trace(const llama_model* model, const MonitorArguments& arguments,
                                    int64_t n_prompt, int64_t n_ubatch);

}  // namespace mixed_kv::tools
