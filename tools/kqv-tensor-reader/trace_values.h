#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "trace/trace_schema.h"

// Values of recorded tensors as numbers, whatever they are stored as. Shared by the trace tools; needs no
// ggml.
namespace mixed_kv::trace_tools {

// Whether to_floats() knows the type: f32, f16, bf16 and the block types that llama.cpp's caches may have.
bool is_convertible(trace::GgmlType type) noexcept;

// All values in memory order. Throws Error for a type that is_convertible() does not know.
std::vector<float> to_floats(const trace::TensorData& tensor);
std::vector<float> to_floats(trace::GgmlType type, std::span<const std::byte> bytes);

// K or V of a record with every cell at its place, [n_stream][n_kv][n_head_kv][head_dim].
struct DensePart {
    std::vector<double> values;   // cells without a row are 0
    std::vector<uint8_t> stored;  // [n_stream * n_kv]: 1 if the record holds the cell's row
    int64_t n_hot = 0;            // cells with an exact row
    int64_t n_cold = 0;           // cells in cold pages without one
    const double* row(int64_t cell, int64_t head, int64_t n_head_kv, int64_t head_dim) const {
        return values.data() + (cell * n_head_kv + head) * head_dim;
    }
};

enum class Side { k, v };

// Rebuilds one side of the cache: exact rows as they are, cold pages decoded by the reference codec. For MLA,
// V is the first head_dim_v values of K's rows. Throws Error, naming layer and step, for codes that this
// build cannot decode (unknown format, other block size, rotation or page size than the format has).
DensePart dense_part(const trace::TraceRecord& record, Side side);

// Which cells some query of the record sees, [n_stream * n_kv]; all without a mask.
std::vector<uint8_t> visible_cells(const trace::TraceRecord& record);

// "layer 3, step 12"
std::string place_text(int32_t layer, int32_t step);

// Mean, standard deviation, smallest and largest value. NaN counts as NaN.
struct Statistics {
    int64_t n = 0;
    double mean = 0, std = 0, min = 0, max = 0;
};
Statistics statistics(std::span<const float> values);

}  // namespace mixed_kv::trace_tools
