#pragma once

#include "html/bundle.h"
#include "kqv-tensor-reader/check.h"
#include "kqv-tensor-reader/quantization.h"
#include "trace/trace_schema.h"

namespace mixed_kv::trace_tools {

// Everything that the page shows of one record beyond its line in the report: views, pages, weights, errors
// by row and channel, values by channel. check: with its output kept. What is long is sampled or binned; the
// numbers that say how stand beside it.
tools::Bundle record_detail(const trace::TraceRecord& record, const RecordCheck& check,
                            const RecordOriginals& originals);

}  // namespace mixed_kv::trace_tools
