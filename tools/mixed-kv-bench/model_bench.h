#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "mixed-kv-bench/attention_bench.h"

namespace mixed_kv::tools {

struct ModelCase {
    std::int64_t depth = 0;  // of every sequence
    int n_parallel = 1;      // sequences that take a step together
    std::string k, v;
    Spread tokens_per_second;    // of all sequences together
    std::uint64_t kv_bytes = 0;  // of our cache, all layers and sequences, at this depth
    // Generation: reading all weights and our K and V once per step. 0 for prompts, which are bound by
    // arithmetic.
    double tokens_per_second_ceiling = 0;
    // Weights, K and V may come from the CPU's caches: reading memory is then no ceiling.
    bool fits_cache = false;
    std::map<std::string, Spread> host;  // tokens per second by cache type

    double speedup(const std::string& type) const { return tokens_per_second.median / host.at(type).median; }
};

struct ModelReport {
    BenchMachine machine;
    std::string model, description;
    std::uint64_t weight_bytes = 0;
    int n_prompt = 1;  // tokens of a step
    bool kv_unified = false;
    int window = 0, sinks = 0;
    std::vector<ModelCase> cases;
};

ModelReport run_model_bench(const BenchArguments& arguments);

}  // namespace mixed_kv::tools
