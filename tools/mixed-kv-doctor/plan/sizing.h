#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "mixed_kv/settings.h"

namespace mixed_kv::tools {

// What a model spread over machines takes and how fast it can be: a chain of rpc-servers, each with some of
// the layers, their weights and their part of the mixed cache. docs/cluster.md explains the terms and holds
// them against measurements. All sizes are in bytes, all times in seconds, unless a name says otherwise.

// One layer.
struct LayerShape {
    double weights = 0;
    double expert_weights = 0;  // of `weights`, those of experts, of which a token uses some
    int n_head_kv = 0;          // 0: the layer has no cache (recurrent)
    int head_dim_k = 0, head_dim_v = 0;
};

struct ModelShape {
    std::vector<LayerShape> layers;
    double output_weights = 0;     // what follows the last layer
    double experts_per_token = 1;  // share of the experts that one token uses
    std::int64_t n_embd = 0, n_vocab = 0;
    std::int64_t trained_context = 0;  // 0: unknown
};

// What runs: sequences that each have grown to `context` tokens, one token of each in every step.
struct Load {
    std::int64_t context = 0;
    int sequences = 1;
};

struct Machine {
    std::string name;
    double memory_mib = 0;  // that its server may take
    double gb_s = 0;        // that its cores read from memory, 10^9 bytes per second
    double link_mbit = 0;   // between client and server, 10^6 bits per second
    double latency_ms = 0;  // round trip between client and server, as ping says it
};

// K and V of one layer and one sequence (docs/memory.md, records aside).
struct LayerCache {
    double exact = 0;  // rows in FP16
    double cold = 0;   // blocks
    double f16 = 0;    // what llama.cpp's own cache takes
    double total() const noexcept { return exact + cold; }
};
LayerCache layer_cache(const ModelShape& model, int layer, const Settings& settings, std::int64_t n_rows);

// One machine's part. Layers are followed by the output as one more item, as llama.cpp's --tensor-split
// counts.
struct Share {
    const Machine* machine = nullptr;
    int n_layers = 0;
    bool has_output = false;
    double weights = 0, cache = 0, cache_f16 = 0, compute = 0;  // what is held
    double read_s = 0, network_s = 0;                           // of one step
    int items() const noexcept { return n_layers + (has_output ? 1 : 0); }
    double memory() const noexcept { return weights + cache + compute; }
};

// One client and its servers, one after the other.
struct Chain {
    std::vector<Share> shares;  // of the machines that are needed, in the order of --rpc
    int sequences = 0;
    int missing_items = 0;  // for which there was no room
    double step_s() const noexcept;
};

// The machines dealt into chains that work side by side, each with its share of the sequences.
struct Plan {
    std::vector<Chain> chains;
    bool fits() const noexcept;
    double tokens_per_second() const noexcept;  // of all chains; at most
};
Plan make_plan(const ModelShape& model, const Settings& settings, const Load& load,
               const std::vector<Machine>& machines, int n_chains);

// The plan with the most tokens per second among those that fit; the single chain when none fits.
Plan best_plan(const ModelShape& model, const Settings& settings, const Load& load,
               const std::vector<Machine>& machines);

// How many sequences of this context fit into the machines dealt into that many chains.
int most_sequences(const ModelShape& model, const Settings& settings, std::int64_t context,
                   const std::vector<Machine>& machines, int n_chains);

}  // namespace mixed_kv::tools
