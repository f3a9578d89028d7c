#pragma once

#include <ggml.h>

#include <cstdint>
#include <optional>

#include "mixed_kv_api.h"
#include "trace/trace_schema.h"

namespace mixed_kv::tools {

// Where the number of an attention op's layer was read.
struct LayerGuess {
    int32_t layer = 0;
    bool certain = false;  // from the query's name; else from the cache's, which layers may share
};

// The layer of a FLASH_ATTN_EXT node by the names of its sources; nullopt when none has a number.
std::optional<LayerGuess> guess_layer(const ggml_tensor* node);

// N of "kqv_out-N".
std::optional<int32_t> output_layer(const ggml_tensor* node);

enum class Sources { record, leave_out };

// Copies a FLASH_ATTN_EXT node that has just run: output, queries, mask, sinks, scalars, and K and V as the
// cache holds them. Valid only between the node's own callback and the next compute. `api`: the plugin's
// interface, or null. Throws Error for what the trace format has no place
// for.
trace::TraceRecord capture_attention(const ggml_tensor* node, const mixed_kv_api* api, Sources sources);

}  // namespace mixed_kv::tools
