#pragma once

#include <cstdint>
#include <map>
#include <string>

#include <vector>
#include "mixed-kv-bench/attention_rig.h"

namespace mixed_kv::tools {

// One arithmetic unit at its fastest: independent multiply-accumulates on registers, all threads, measured
// now. A multiply-accumulate counts as two operations; a unit that needs several of its own for one of ours,
// as the kernels do that carry 16 bits in two bytes, counts them as one: "2 x vpdpbusd int8 avx512".
struct ComputePeak {
    std::string unit;  // "fma f32 avx2", "vpmaddwd int16 avx2", ...
    double operations_per_second = 0;
};

// The unit that does most of a kernel set's work on pages of a format ("f16" or a cold format) for n_rows
// query rows per KV head.
std::string unit_used(const std::string& isa, const std::string& format, std::int64_t n_rows);

// All units of a case with their shares of its useful operations: hot rows are FP16 whatever the formats are.
std::map<std::string, double> units_used(const std::string& isa, const AttentionShape& shape,
                                         const std::string& k, const std::string& v);

// Throws std::runtime_error for a unit that this CPU has not.
ComputePeak measure_peak(const std::string& unit, int n_threads);

}  // namespace mixed_kv::tools
