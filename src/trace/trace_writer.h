#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string_view>

#include "trace/atomic_file.h"
#include "trace/trace_schema.h"

namespace mixed_kv::trace {

struct TraceWriterOptions {
    TraceForm form = TraceForm::self_contained;
    // From TraceEstimate; 0: unknown. The file is refused before the run if the disk has less free.
    uint64_t expected_bytes = 0;
    uint64_t expected_records = 0;
    bool keeps_written = false;  // these records keep k_written and v_written
    TempFile temp = TempFile::unnamed_if_possible;
};

// Writes a trace file record by record. Memory does not grow with the number of records (in the compact form,
// it grows with the number of layers and cells). The file appears under its name in finish(), complete or not
// at all; see GgufStreamWriter and AtomicFile.
class TraceWriter {
  public:
    // Throws Error if the target cannot be written.
    explicit TraceWriter(const std::filesystem::path& path, const TraceWriterOptions& options = {});
    ~TraceWriter();
    TraceWriter(const TraceWriter&) = delete;
    TraceWriter& operator=(const TraceWriter&) = delete;

    // A text about the run (model file, command, versions) as key "mixed_kv.trace.info.<name>".
    void set_info(std::string_view name, std::string_view text);

    // Checks (validate()) and writes one record. Records come in order of step, and of layer within a step.
    // Throws Error for a record out of order or not valid, after which the next may be tried; and for a write
    // error, after which nothing more is possible.
    void append(const TraceRecord& record);

    // Completes the file.
    void finish();

    uint64_t n_records() const noexcept;

    // Bytes of tensor data so far.
    uint64_t data_bytes() const noexcept;

  private:
    class Impl;
    std::unique_ptr<Impl> impl_;
};

// What a run will record, to say beforehand how large the file gets.
struct TraceEstimate {
    TraceForm form = TraceForm::self_contained;
    bool has_sources = true;
    bool keeps_written = false;
    int64_t n_layers = 1;
    int64_t n_prompt = 0;  // tokens evaluated in steps of n_ubatch
    int64_t n_ubatch = 512;
    int64_t n_decode = 0;  // further steps of one token each
    int64_t n_head = 1;
    int64_t n_head_kv = 1;
    int64_t head_dim_k = 64;
    int64_t head_dim_v = 64;
    int64_t n_kv_padding = 256;         // the op's n_kv is the used cells rounded up to this
    double bytes_per_value = 2.0;       // of rows stored exactly: the cache type's, 2 for F16
    int64_t hot_rows = INT64_MAX;       // mixed cache: about this many rows stay exact, the others are cold
    double cold_bytes_per_value = 0.0;  // all-in

    int64_t n_records() const;
    // Bytes of the whole file, somewhat on the high side.
    uint64_t bytes() const;
};

}  // namespace mixed_kv::trace
