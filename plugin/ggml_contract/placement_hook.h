#pragma once

#include "ggml-backend-impl.h"

namespace mixed_kv::plugin {

// Keeps attention over our caches on our device.
//
// The scheduler places an op by the memory it writes to or by its neighbours, never attention by its K and V.
// Where a layer writes no K and V of its own (it shares another layer's: gemma3n, gemma4), its neighbours are
// the CPU's, and the CPU would attend over an F16 copy of the whole cache, made for every graph. The hook
// wraps the CPU device's supports_op, so that it declines attention that reads a mixed cache and that we
// compute (docs/adr/0008-attention-follows-the-cache.md).
void install_placement_hook(ggml_backend_dev_t cpu);

}  // namespace mixed_kv::plugin
