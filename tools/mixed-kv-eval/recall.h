#pragma once

#include <functional>
#include <string>
#include <vector>

#include "mixed-kv-eval/configuration.h"

namespace mixed_kv::tools {

// Facts planted in long contexts and asked later (models/README.md: one JSON object per line with the text
// and, per question, the token positions of fact and question and the answer's token). A question is answered
// right when the most probable token after it is the answer's.
struct RecallResult {
    std::string name;
    int n = 0, right = 0;
    // By distance from fact to question: quarters of the longest distance.
    int n_by_quarter[4] = {}, right_by_quarter[4] = {};
    double score() const { return n == 0 ? 0 : double(right) / n; }
};

// Throws std::runtime_error when the file is not such a test, or its texts do not fit n_ctx.
std::vector<RecallResult> recall(const std::vector<Configuration>& configurations, const Plugin& plugin,
                                 llama_model* host_model, llama_model* plugin_model, const std::string& path,
                                 int n_ctx, int n_ubatch, int n_threads, int max_contexts,
                                 const std::function<void(int, int)>& progress);

}  // namespace mixed_kv::tools
