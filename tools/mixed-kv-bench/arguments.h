#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "mixed-kv-bench/attention_rig.h"

namespace mixed_kv::tools {

enum class BenchMode { attention, prefill, model, prompt };
enum class OutputFormat { text, json, csv, markdown };

struct BenchArguments {
    BenchMode mode = BenchMode::attention;
    OutputFormat output = OutputFormat::text;
    int n_threads = 1;
    std::string isa;  // resolved: the set that runs
    std::vector<std::string> host_types;
    int host_placements = 2;  // how often the host's caches are created, elsewhere each time
    int n_rounds = 5;
    std::size_t rotation_mib = 1024;
    std::vector<std::string> k, v;  // formats of cold K and V; formats() makes cases of them

    // attention, prefill
    int head_dim = 128, n_head = 32, n_head_kv = 8;
    std::vector<std::int64_t> n_q = {1};
    std::vector<int> n_seq = {1};
    std::int64_t n_hot = 0;
    std::vector<std::int64_t> n_kv;    // attention
    std::vector<std::int64_t> depths;  // prefill, model

    // model, prompt
    std::string model;
    int n_prompt = 1;  // model: tokens of a step, 1 generates, more is a ubatch; prompt: tokens of all of it
    int window = 64, sinks = 4;
    std::string svg;   // file for the plot; empty: none
    std::string html;  // file for the page; empty: none
    // model
    std::vector<int> n_parallel = {1};
    bool kv_unified = false;
    // prompt
    int n_ubatch = 512, n_runs = 3, n_gen = 16;

    // The shapes of all cases of attention and prefill: every combination.
    std::vector<AttentionShape> shapes() const;
    // (K, V) of all cases.
    std::vector<std::pair<std::string, std::string>> formats() const;
};

// nullopt: help was printed. Throws UsageError naming the option, the value and what is accepted.
std::optional<BenchArguments> parse_bench_arguments(int argc, char** argv);

}  // namespace mixed_kv::tools
