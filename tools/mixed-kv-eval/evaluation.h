#pragma once

#include <functional>
#include <string>
#include <vector>

#include "mixed-kv-eval/configuration.h"
#include "mixed-kv-eval/divergence.h"

namespace mixed_kv::tools {

struct EvaluationOptions {
    int n_ctx = 2048;
    int n_ubatch = 64;
    int n_threads = 1;
    int max_chunks = 0;          // 0: all of the text
    int noise_floor_chunks = 1;  // contexts on which the reference is run again with scalar kernels
    std::string progress_path;   // results are kept there and not computed again; empty: nowhere
};

struct Result {
    std::string name;
    Divergence::Summary divergence;
    double bits_per_value = 0;  // mean over the scored positions
    double kv_bytes = 0;        // at the end of a context
    int n_chunks = 0;
    bool cold = false;        // some row was cold when a position was scored
    bool has_window = false;  // rows become cold, if there are enough
    std::vector<Divergence> contexts;
};

struct Evaluation {
    std::vector<Result> results;
    double noise_floor = 0;  // mean KLD of the reference against itself through other kernels
    std::size_t n_scored = 0;
};

// Cuts the tokens into contexts and runs every configuration beside the reference, one ubatch after the
// other, so that nothing the size of n_ctx * n_vocab is stored. Only positions in the second half of each
// context are scored. progress(done, total) is called after every context. Throws std::runtime_error when the
// text is too short.
Evaluation evaluate(const std::vector<Configuration>& configurations, const Plugin& plugin,
                    llama_model* host_model, llama_model* plugin_model,
                    const std::vector<llama_token>& tokens, const EvaluationOptions& options,
                    const std::function<void(int, int)>& progress);

}  // namespace mixed_kv::tools
