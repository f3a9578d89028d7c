#pragma once

#include "mixed-kv-bench/attention_rig.h"

namespace mixed_kv::tools {

// Relative RMS of the last op's output against attention in double over the rows as they are stored (cold
// blocks dequantized by the reference's own decoder), over a sample of query rows, heads and sequences.
double relative_rms(HostRuntime& runtime, const AttentionRig& rig, const AttentionShape& shape,
                    const AttentionData& data);

// What that may be for logits of standard deviation 1: 3e-5 where all pages are FP16, 2e-4 where some are
// cold.
double relative_rms_allowed(bool any_cold);

}  // namespace mixed_kv::tools
