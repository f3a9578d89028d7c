#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "common/plugin.h"
#include "mixed-kv-run/arguments.h"

namespace mixed_kv::tools {

// One run of a prompt and what came of it.
struct RunResult {
    bool active = false;  // some layer's cache was mixed
    std::uint32_t n_ctx = 0;
    std::int64_t n_live_rows = 0;  // tokens in the cache at the end
    int n_prompt = 0;
    int n_decoded = 0;  // generated tokens that were run through the model again
    double prompt_seconds = 0;
    double generation_seconds = 0;
    std::vector<llama_token> tokens;
    std::string text;
    bool context_full = false;        // stopped for want of room
    std::vector<std::string> report;  // the plugin's lines

    std::uint64_t kv_bytes = 0;              // resident, with the plugin's bookkeeping
    std::uint64_t kv_bookkeeping_bytes = 0;  // of that, page tables and the like, as the plugin counts them
    std::uint64_t values = 0;                // elements of the live rows
    std::optional<std::uint64_t> kv_bytes_f16;  // what llama.cpp's F16 cache keeps resident for the same rows
    bool kv_bytes_f16_measured = false;         // else it follows from the shapes
    std::uint64_t f16_bytes_declared = 0;       // what llama.cpp's F16 cache allocates for the whole context
    std::uint64_t budget_bytes = 0, budget_steps = 0;  // what a budget leaves for rows, steps down of pages

    double prompt_speed() const { return prompt_seconds > 0 ? n_prompt / prompt_seconds : 0; }
    double generation_speed() const { return generation_seconds > 0 ? n_decoded / generation_seconds : 0; }
    double bits_per_value() const {
        return values > 0 ? 8.0 * static_cast<double>(kv_bytes) / static_cast<double>(values) : 0;
    }
};

struct RunEvents {
    std::function<void(const std::vector<std::string>&)> on_cache_created;  // the plugin's lines
    std::function<void(int done, int total)> on_prompt_progress;
    std::function<void(const std::string&)> on_text;
    // Just before the prompt, and after the last token, when the cache is still there.
    std::function<void()> on_begin, on_end;
};

struct RunInput {
    const RunArguments& arguments;
    CacheOwner owner = CacheOwner::plugin;
    Plugin* plugin = nullptr;  // null: not loaded
    // An F16 run after a mixed one also measures how much it needs for that many rows.
    std::int64_t rows_to_measure = 0;
    std::uint64_t* bytes_of_rows = nullptr;
};

// Loads the model, runs the prompt, generates, measures, and lets go of everything. Throws
// std::runtime_error.
RunResult run_prompt(const RunInput& input, const RunEvents& events);

}  // namespace mixed_kv::tools
