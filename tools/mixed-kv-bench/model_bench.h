#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "mixed-kv-bench/attention_bench.h"

namespace mixed_kv::tools {

struct ModelCase {
    std::int64_t depth = 0;
    std::string k, v;
    Spread tokens_per_second;
    std::uint64_t kv_bytes = 0;  // of our cache, all layers, at this depth
    // Generation: read bandwidth / (weights + our K and V). 0 for prompts, which are bound by arithmetic.
    double tokens_per_second_ceiling = 0;
    std::map<std::string, Spread> host;  // tokens per second by cache type
};

struct ModelReport {
    BenchMachine machine;
    std::string model, description;
    std::uint64_t weight_bytes = 0;
    int n_prompt = 1;  // tokens of a step
    int window = 0, sinks = 0;
    std::vector<ModelCase> cases;
};

ModelReport run_model_bench(const BenchArguments& arguments);

}  // namespace mixed_kv::tools
