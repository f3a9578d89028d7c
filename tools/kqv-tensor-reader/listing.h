#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "trace/trace_schema.h"

namespace mixed_kv::trace_tools {

// The tensors of a record with what their axes mean, and how the op addressed them, one line each.
std::string describe_tensors(const trace::TraceRecord& record);

// The same as JSON: {layer, step, cache, n_tokens, ..., tensors: [{name, type, shape, axes, view}], k, v}.
// Shapes in C order, a view's ne, nb (bytes), order and origin as the op has them.
nlohmann::ordered_json tensors_json(const trace::TraceRecord& record);

// One row per tensor: type, logical shape, strides in bytes, mean, standard deviation, smallest and largest
// value. Tensors that are there but hold nothing (no cold rows yet) are listed as empty.
std::string statistics_table(const trace::TraceRecord& record);

// "12.3 MiB"
std::string size_text(double bytes);

}  // namespace mixed_kv::trace_tools
