#pragma once

#include <cstdint>
#include <map>
#include <utility>
#include <vector>

#include "trace/trace_reader.h"
#include "trace/trace_schema.h"

namespace mixed_kv::trace {

// What the cells of a record held before any encoding, from a trace that keeps rows as they were written
// (kqv-trace-monitor --keep-originals). Remembers the rows of every layer it was asked for, as large as the
// layer's F16 cache, and reads the steps on to the next record; records in order of their steps cost least.
class OriginalRows {
  public:
    explicit OriginalRows(const TraceReader& reader);

    // Whether the trace keeps any.
    bool empty() const noexcept { return steps_.empty(); }

    // F16 bits, [n_stream * n_kv][n_head_kv][head_dim]; known[cell] is 0 where none was kept. is_value: V,
    // else K. Layers that read another layer's cache get that layer's rows. Throws Error for rows that are
    // not those recorded.
    struct Rows {
        std::vector<uint16_t> values;
        std::vector<uint8_t> known;
    };
    Rows rows(const TraceRecord& record, bool is_value);

  private:
    using Cell = std::pair<int32_t, int32_t>;  // stream, index in it
    struct Layer {
        size_t n_read = 0;  // of its steps
        std::map<Cell, std::vector<uint16_t>> k, v;
    };
    void read_on(int32_t layer, int32_t step);

    const TraceReader& reader_;
    std::map<int32_t, std::vector<int32_t>> steps_;  // by layer: those that keep rows, ascending
    std::map<int32_t, Layer> layers_;
};

}  // namespace mixed_kv::trace
