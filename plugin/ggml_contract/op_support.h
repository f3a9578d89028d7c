#pragma once

#include "ggml.h"

namespace mixed_kv::plugin {

// Whether this device takes the op. Also learns from the graphs the host reserves: how many heads a row has,
// and which ops will make us pin.
bool supports(const ggml_tensor* op);

// Whether the host's CPU device computes the op. It judges by buffers too and refuses ours, because they are
// not host buffers. Plain and pinned memory of ours is as good as a host buffer, so this asks about the op
// alone.
bool cpu_supports(const ggml_tensor* op);

}  // namespace mixed_kv::plugin
