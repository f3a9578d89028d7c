#pragma once

#include <cstddef>
#include <functional>
#include <string>

#include "kqv-tensor-reader/quantization.h"
#include "kqv-tensor-reader/report.h"
#include "trace/trace_reader.h"

namespace mixed_kv::trace_tools {

struct TracePageOptions {
    CheckOptions check;                 // as for the report
    std::size_t max_bytes = 5'000'000;  // of the page
    std::size_t max_details = 400;      // records that are shown in detail
    // What rows were before they were encoded; empty: not known.
    std::function<RecordOriginals(const trace::TraceRecord&)> originals;
};

// The report as an HTML page: every record on the map and in the tables, and details of as many as fit
// (by_interest()). Reads the trace again, one record at a time.
std::string trace_page(const trace::TraceReader& reader, const Report& report,
                       const TracePageOptions& options);

}  // namespace mixed_kv::trace_tools
