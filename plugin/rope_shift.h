#pragma once

#include "host_cpu.h"

namespace mixed_kv::plugin {

// K-shift: rotates every cell whose shift is not zero, page by page, with the host's own ROPE on the page's
// decoded rows. Hot rows, sinks and other exact rows stay exact up to FP16 rounding; cold blocks are encoded
// again.
ggml_status shift_keys(HostCpu& cpu, ggml_tensor* op);

}  // namespace mixed_kv::plugin
