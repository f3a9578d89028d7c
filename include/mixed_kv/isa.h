#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace mixed_kv {

namespace kernels {
struct KernelSet;
}

// Kernel sets compiled into this library that this CPU can run, fastest first; the last is "scalar".
std::vector<std::string_view> supported_isas();

// Kernel sets compiled into this library, supported or not, fastest first (tests report what they skip).
std::vector<std::string_view> compiled_isas();

// The named set; an empty name means the fastest supported one. Throws Error for an unknown or unsupported
// name, listing the valid ones.
const kernels::KernelSet& kernel_set(std::string_view name);

// The set used by default: MIXED_KV_ISA when set and not empty, else the fastest. Throws Error like
// kernel_set(). Read once per process.
const kernels::KernelSet& active_kernel_set();

}  // namespace mixed_kv
