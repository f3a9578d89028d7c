#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kqv-tensor-reader/recompute.h"
#include "trace/trace_schema.h"

namespace mixed_kv::trace_tools {

enum class ReferenceUse { both, torch, exact };

struct CheckOptions {
    double tolerance = 1e-4;
    ReferenceUse use = ReferenceUse::both;
};

// How far the recorded output is from one recomputation of it.
struct ErrorFigures {
    bool computed = false;
    double max_error = 0;     // largest absolute difference of any value
    double rms_error = 0;     // over all values
    double max_relative = 0;  // largest relative L2 error of a row
    // Largest share of its limit that a row's error takes (see check_record); more than 1, or NaN: out of
    // tolerance.
    double limit_share = 0;
    int64_t failed_rows = 0;
    int64_t worst_stream = 0, worst_token = 0, worst_head = 0;  // the row of limit_share
};

struct RecordCheck {
    int32_t layer = 0, step = 0;
    trace::CacheKind cache = trace::CacheKind::standard;
    bool checked = false;  // false: recorded without sources
    bool pass = false;
    std::string problem;  // one line, when not pass
    int64_t n_tokens = 0, n_kv = 0, n_hot = 0, n_cold = 0;
    ErrorFigures torch, exact;  // against libtorch in float32, and against the double reference
    // When asked to be kept: the double reference's output, and of each row the ratio of its error to what it
    // may be, the worse of both references, [n_stream][n_tokens][n_head].
    std::vector<double> recomputed, row_shares;

    // The worse of both; NaN when one of them is.
    double max_error() const;
    double rms_error() const;
    double max_relative() const;
    double limit_share() const { return worst().limit_share; }
    // The one with the larger limit_share.
    const ErrorFigures& worst() const;
};

// Recomputes a record. Every row (one query of one head) must satisfy
//   largest |error| <= tolerance * largest |V| of the values its query sees, and
//   L2 of the error <= 10 * tolerance * L2 of the row;
// the larger of both quotients is the row's share of its limit. This includes the absolute bound `tolerance`
// wherever no |V| exceeds 1. Throws Error for records that cannot be recomputed at all.
enum class KeepOutput { no, yes };
RecordCheck check_record(const trace::TraceRecord& record, const CheckOptions& options,
                         KeepOutput keep = KeepOutput::no);

}  // namespace mixed_kv::trace_tools
