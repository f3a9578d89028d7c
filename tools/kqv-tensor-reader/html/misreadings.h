#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kqv-tensor-reader/recompute.h"
#include "trace/trace_schema.h"

namespace mixed_kv::trace_tools {

// Whether the op's view lies in memory in its own order without gaps. Then nothing can be misread.
bool is_contiguous(const trace::SourceView& view);

// What somebody reads who takes a permuted view for a contiguous one: for each element of the view, the
// element that lies at the place where it would be if the view were contiguous.
//
// values and the result: [ne3][ne1][ne2][ne0] of the view, that is [n_stream][tokens or
// cells][heads][head_dim]. Places outside the view, in memory that the trace does not have, read as 0. Empty
// where the view does not tell: none recorded, another shape, rows of blocks cut through.
template <typename T>
std::vector<T> read_as_contiguous(const std::vector<T>& values, const trace::SourceView& view);

// The output of one query, as recomputed from inputs that were misread, beside the recorded one.
struct Misreading {
    std::string what;             // "nothing", "k", "v", "k and v", "q", "q, k and v", "kqv_out"
    std::vector<double> output;   // [n_head][head_dim_v]
    double against_right = 0;     // relative L2 distance from the right output
    double against_recorded = 0;  // and of the recorded output from this one
};

// The first says what is right, the others what each misreading that changes anything gives. out: the right
// output of all queries, [n_stream][n_tokens][n_head][head_dim_v].
std::vector<Misreading> misreadings(const trace::TraceRecord& record, const AttentionData& data,
                                    const std::vector<double>& out, int64_t stream, int64_t token);

}  // namespace mixed_kv::trace_tools
