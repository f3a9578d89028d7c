#pragma once

#include <string>
#include <vector>

#include "mixed-kv-stress/operations.h"
#include "mixed-kv-stress/pair.h"

namespace mixed_kv::tools {

struct RunOptions {
    std::string model;  // path
    int n_layer = 1;
    double attention_sigma = 2.0;
    bool has_values = true, sliding_window = false;
    std::uint64_t seed = 1;
    int n_pairs = 3, n_threads = 1;
    bool with_budget = false;
    int plant = -1;  // after this operation a fault is planted (the tool's own test)
};

struct RunResult {
    bool ok = false;
    std::size_t ops_done = 0;
    Figures figures;
    std::string failure;           // what did not agree, or how the process ended
    std::vector<std::string> log;  // what was done, in words
};

// Runs the operations in a process of its own, so that an abort of llama.cpp or a crash is a failure like any
// other. log: keep the words of every step.
RunResult run_in_child(const RunOptions& options, const std::vector<Op>& ops, bool log);

// The shortest sequence found, within a number of runs, that still fails.
std::vector<Op> shrink(const RunOptions& options, std::vector<Op> ops, std::size_t failed_at, int max_runs);

}  // namespace mixed_kv::tools
