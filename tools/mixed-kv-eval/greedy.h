#pragma once

#include <functional>
#include <string>
#include <vector>

#include "mixed-kv-eval/configuration.h"

namespace mixed_kv::tools {

// How long a cache's greedy continuation stays that of exact F16 rows.
struct GreedyResult {
    std::string name;
    std::vector<int> same;  // per prompt: tokens before the first difference, at most n_tokens
    double mean() const;
};

// Prompts are the first halves of contexts of the text (n_ctx / 2 tokens), each continued by n_tokens tokens.
// Throws std::runtime_error when the text is too short or n_tokens does not fit the context.
std::vector<GreedyResult> greedy_divergence(const std::vector<Configuration>& configurations,
                                            const Plugin& plugin, llama_model* host_model,
                                            llama_model* plugin_model, const std::vector<llama_token>& tokens,
                                            const ContextOptions& options, int n_prompts, int n_tokens,
                                            const std::function<void(int, int)>& progress);

}  // namespace mixed_kv::tools
