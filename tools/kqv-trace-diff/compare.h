#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "trace/trace_schema.h"

namespace mixed_kv::trace_tools {

// How one tensor of two records differs; B is measured against A.
struct TensorDifference {
    std::string tensor;
    std::string mismatch;  // type, shape, scalar or presence; empty: comparable and compared
    bool note = false;     // a mismatch that is worth saying but no fault: how the values are stored
    int64_t n = 0;         // values compared
    double max_absolute = 0;
    double max_relative = 0;  // max_absolute over the largest |value| of A
    double rmse = 0;
    double cosine = 1;

    bool within(double tolerance) const;
};

// Compares what two records mean: kqv_out, q, K and V (dequantised, row by row, for the cells that a query
// sees), mask and sinks, scalars and dimensions. How K and V are stored may differ and is noted.
std::vector<TensorDifference> compare_records(const trace::TraceRecord& a, const trace::TraceRecord& b);

}  // namespace mixed_kv::trace_tools
