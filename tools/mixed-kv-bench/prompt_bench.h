#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "mixed-kv-bench/attention_bench.h"

namespace mixed_kv::tools {

// One ubatch of the prompt over all runs.
struct PromptUbatch {
    std::int64_t depth = 0;  // tokens before it
    int n_tokens = 0;
    Spread seconds;
    std::map<std::string, Spread> host;  // by cache type

    double speedup(const std::string& type) const { return host.at(type).median / seconds.median; }
};

// One of the contexts that read the prompt, over all runs.
struct PromptReader {
    Spread prompt_seconds;
    Spread generation_tokens_per_second;  // after the whole prompt
    std::string text;                     // generated greedily in the first run
};

struct PromptReport {
    BenchMachine machine;  // its memory is not measured: prompts are bound by arithmetic
    std::string model, description, k, v;
    std::uint64_t weight_bytes = 0;
    int n_prompt = 0, n_ubatch = 0, n_runs = 0, n_gen = 0;
    int window = 0, sinks = 0;
    std::vector<PromptUbatch> ubatches;
    PromptReader ours;
    std::map<std::string, PromptReader> host;  // by cache type
    std::uint64_t kv_bytes = 0;                // of our cache after the prompt
    std::uint64_t peak_resident_bytes = 0;     // of the process, with all contexts
};

// Reads a prompt from its first token to its last, ubatch by ubatch, with every cache in turn, and goes on
// with generated text. What a user waits for is in these times: also freezing the ubatch before.
PromptReport run_prompt_bench(const BenchArguments& arguments);

}  // namespace mixed_kv::tools
