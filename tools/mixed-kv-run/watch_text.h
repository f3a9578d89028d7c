#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace mixed_kv::tools {

struct WatchProgress {
    int n_prompt = 0, n_prompt_done = 0, n_generated = 0;
    double tokens_per_second = 0;  // of the present phase
};

// Pages of K and V together.
struct WatchedLayer {
    int layer = 0;
    std::int64_t n_hot = 0, n_cold = 0;
};

struct WatchState {
    WatchProgress progress;
    std::vector<WatchedLayer> layers;
    std::uint64_t bytes = 0;      // the mixed caches with their bookkeeping
    std::uint64_t f16_bytes = 0;  // what the same rows take in F16
};

// "prompt 512 of 1221 tokens, 812 t/s; 40 hot and 180 cold pages, 1.21 MiB (F16: 3.05 MiB)"
std::string watch_line(const WatchState& state);

// That line and one row for each layer, layers taken together where there is room for fewer: at most n_rows
// lines, none wider than `width`. colour: with the terminal's sequences for it, which take no width.
std::vector<std::string> watch_panel(const WatchState& state, int n_rows, int width, bool colour);

}  // namespace mixed_kv::tools
