#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace mixed_kv::tools {

// One arithmetic unit at its fastest: independent multiply-accumulates on registers, all threads, measured
// now. A multiply-accumulate counts as two operations.
struct ComputePeak {
    std::string unit;  // "fma f32 avx2", "vpmaddwd int16 avx2", ...
    double operations_per_second = 0;
};

// The unit that does most of a kernel set's work on pages of a format ("f16" or a cold format) for n_rows
// query rows per KV head.
std::string unit_used(const std::string& isa, const std::string& format, std::int64_t n_rows);

// Throws std::runtime_error for a unit that this CPU has not.
ComputePeak measure_peak(const std::string& unit, int n_threads);

}  // namespace mixed_kv::tools
