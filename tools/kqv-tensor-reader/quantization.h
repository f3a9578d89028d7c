#pragma once

#include <cstdint>
#include <vector>

#include "kqv-tensor-reader/trace_values.h"
#include "trace/trace_reader.h"
#include "trace/trace_schema.h"
#include "trace/written_rows.h"

namespace mixed_kv::trace_tools {

// Rows as they were before they were encoded, where known.
struct Originals {
    std::vector<float> values;   // [n_stream][n_kv][n_head_kv][head_dim], empty: none known
    std::vector<uint8_t> known;  // [n_stream * n_kv]
};

// How far the decoded rows of one side are from the original ones: over the cells that are read from codes
// and whose original is known, all KV heads.
struct QuantizationFigures {
    int64_t n_cells = 0;       // compared; 0: no figures
    double squared_error = 0;  // sums over all values of these cells
    double squared_original = 0;
    double max_error = 0;
    int64_t n_values = 0;

    double rms() const;
    // RMS of the error over RMS of the originals.
    double relative() const;
    void add(const QuantizationFigures& other);
};

struct RecordQuantization {
    QuantizationFigures k, v;
};

// A quantized row is one whose value could differ from what was written: codes of a cold page, or a row of a
// standard cache in a block type.
QuantizationFigures quantization(const trace::TraceRecord& record, Side side, const Originals& originals);

// The same by pages of 64 cells, [n_stream][ceil(n_kv / 64)].
std::vector<QuantizationFigures> quantization_by_page(const trace::TraceRecord& record, Side side,
                                                      const Originals& originals);

// The exact rows of the same layer and step in another trace, as originals; none where that record holds the
// rows of another shape or no exact ones.
Originals exact_rows_of(const trace::TraceRecord& other, const trace::TraceRecord& record, Side side);

// Originals of both sides of a record.
struct RecordOriginals {
    Originals k, v;
};

// As the trace itself keeps them; none where it does not.
RecordOriginals originals_kept(trace::OriginalRows& written, const trace::TraceRecord& record);

// From the record of the same layer and step in another trace; none where it has none.
RecordOriginals originals_against(const trace::TraceReader& other, const trace::TraceRecord& record);

RecordQuantization quantization(const trace::TraceRecord& record, const RecordOriginals& originals);

}  // namespace mixed_kv::trace_tools
