#pragma once

#include <cstdint>
#include <string>

#include "mixed-kv-doctor/examine.h"

namespace mixed_kv::tools {

struct PlanQuestion {
    std::string model;         // GGUF
    std::string machines;      // JSON (plan/machines.h)
    std::int64_t context = 0;  // of each sequence; 0: as long as the model was trained for
    int sequences = 1;
};

// What fits and how fast it can be when the model's layers are spread over machines (docs/cluster.md). Needs
// neither llama.cpp nor the plugin. Throws std::runtime_error or Error where a file or a setting is wrong.
void examine_plan(const PlanQuestion& question, Diagnosis& diagnosis);

}  // namespace mixed_kv::tools
