#pragma once

#include <string>

#include "op_case.h"
#include "op_graph.h"

namespace mixed_kv::test {

// How far the op is from its references, in units of what each row may be off.
struct OpFigures {
    double max_error = 0;    // against the double reference
    double exact_ratio = 0;  // worst error / tolerance of a row, against the double reference
    double torch_ratio = 0;  // against libtorch in float32; 0 without libtorch
    std::string problem;     // empty: within tolerance
};

// The reference answers of a case, computed once for all kernel sets.
struct OpAnswers {
    reference::AttentionOutputs exact;
    std::vector<double> torch;  // empty without libtorch
};
OpAnswers answers(const OpData& data);

std::vector<float> run_op(const OpCase& c, const OpData& data, const std::string& isa, int n_threads,
                          int times);
OpFigures check_op(const OpData& data, const OpAnswers& answers, const std::string& isa,
                   const std::vector<float>& out);

// Inputs that must be refused, with one line. Returns the number of those that were not, and prints them.
int check_refusals();

}  // namespace mixed_kv::test
