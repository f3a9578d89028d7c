#pragma once

#include <cstddef>
#include <span>
#include <string>

#include "reference/attention_reference.h"

// How far a kernel's attention may be from the double reference on the same (dequantised) rows, derived from
// the arithmetic that kernels are allowed to use. Compared row by row, so that one wrong row cannot hide in
// the mean of many, and written so that NaN fails.
namespace mixed_kv::test {

// What the errors of an op are proportional to, beside the row's own magnitudes.
struct ErrorModel {
    int head_dim_k = 0;
    int head_dim_v = 0;
    std::int64_t n_kv = 0;
    bool integer_scores =
        false;  // some keys are cold, and read by the decode kernels: q is carried at 16 bits
    bool integer_values = false;  // the same for values: p is carried at 16 bits
    bool rotated_values = false;  // some values are cold: they are summed in the rotated basis
    double product_error = 0.0;   // KernelSet::product_error
    double value_range = 0.0;     // largest |v| of any cell, in the model's basis and in the rotated one
};

// Largest allowed |o - reference| in one output row.
double row_tolerance(const ErrorModel& model, const reference::RowMagnitudes& row);

struct RowErrors {
    std::size_t n_rows = 0;
    std::size_t n_bad = 0;      // rows with !(error <= tolerance)
    std::size_t worst_row = 0;  // of the largest error / tolerance; a NaN counts as the largest
    double worst_ratio = 0.0;
    double relative_rms = 0.0;  // over all rows: |actual - expected| / |expected|
    bool ok() const { return n_rows > 0 && n_bad == 0; }
    std::string message() const;
};

// actual, expected: [n_rows][row_size]; tolerances: [n_rows].
RowErrors compare_rows(std::span<const float> actual, std::span<const double> expected,
                       std::span<const double> tolerances, std::size_t row_size);

}  // namespace mixed_kv::test
