#pragma once

#include <string>

#include "mixed-kv-doctor/plan/sizing.h"

namespace mixed_kv::tools {

// The shape of a GGUF model, from its header alone. Layers with sliding windows count as if they saw the
// whole context. Throws std::runtime_error or Error, one line with the file: not a model, or one whose shape
// is not said.
ModelShape read_model_shape(const std::string& path);

}  // namespace mixed_kv::tools
