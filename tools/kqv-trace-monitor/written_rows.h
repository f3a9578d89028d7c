#pragma once

#include <ggml.h>

#include <cstdint>
#include <optional>

#include "trace/trace_schema.h"

namespace mixed_kv::tools {

// What a SET_ROWS node writes into a K or V cache.
struct CacheWrite {
    int32_t layer = 0;
    bool is_value = false;
    trace::WrittenRows rows;  // rows [n][1][n_head_kv * head_dim]: heads are not known here
};

// Whether the node writes whole rows into a cache tensor by name ("cache_k_l3").
bool writes_cache_rows(const ggml_tensor* node);

// Its source in F16, as the cache rounds it; none if writes_cache_rows() is false. After the node was
// computed.
std::optional<CacheWrite> captured_write(const ggml_tensor* node);

}  // namespace mixed_kv::tools
