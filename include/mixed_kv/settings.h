#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "mixed_kv/calibration.h"
#include "mixed_kv/cold_format.h"

namespace mixed_kv {

// Named combinations of window, sinks and formats, chosen from the study in docs/quality.md.
struct Preset {
    std::string_view name;
    int window, sinks;
    std::string_view key_format, value_format;
};
std::span<const Preset> presets() noexcept;

// One rule of GGML_MIXED_KV_LAYERS: other formats for some layers.
struct LayerRule {
    // Inclusive. Negative numbers count from the end: -1 is the last layer.
    int first = 0, last = 0;
    // What the rule says about K and V: nullopt nothing, nullptr f16.
    std::optional<const ColdFormat*> key, value;
};

// GGML_MIXED_KV_BUDGET_MB: what all caches may take, at every moment, in MiB or as a share of what they would
// take in FP16 at full length. Neither: no budget.
struct Budget {
    double mebibytes = 0, share = 0;
    explicit operator bool() const noexcept { return mebibytes > 0 || share > 0; }
    bool operator==(const Budget&) const = default;
    // Bytes, for caches of these in FP16.
    double bytes(double f16_bytes) const noexcept {
        return share > 0 ? share * f16_bytes : mebibytes * 1024 * 1024;
    }
};

// The user's settings, from the environment (docs/settings.md has the table).
struct Settings {
    std::string preset = "balanced";         // GGML_MIXED_KV: what the settings below are without a variable
    int window = 64;                         // GGML_MIXED_KV_WINDOW: rows per sequence kept in FP16
    int sinks = 4;                           // GGML_MIXED_KV_SINKS: first rows per sequence kept in FP16
    const ColdFormat* key_format = nullptr;  // GGML_MIXED_KV_K; nullptr: f16
    const ColdFormat* value_format = nullptr;  // GGML_MIXED_KV_V
    std::vector<LayerRule> layers;             // GGML_MIXED_KV_LAYERS, in order: the last that speaks wins
    // GGML_MIXED_KV_BITS: formats by layer within a budget. Weaker than `layers`; nullptr: no budget.
    std::shared_ptr<const BitAllocation> allocation;
    Budget budget;
    // GGML_MIXED_KV_LADDER without its f16: what pages step down to under a budget, the narrowest last. Then
    // key_format and value_format are that one, which is what the smallest size is counted with.
    std::vector<const ColdFormat*> ladder;
    int verbose = 0;   // GGML_MIXED_KV_VERBOSE: 0 .. 2
    int limit_mb = 0;  // GGML_MIXED_KV_LIMIT_MB: MiB that all caches may take when full; 0: no limit

    // The format of one layer's K or V. n_layers: of the cache, the last layer's number + 1.
    const ColdFormat* format(KvRole role, int layer, int n_layers) const noexcept;

    // Reads and checks every GGML_MIXED_KV_* variable. get(name) returns nullopt when unset. Throws Error
    // naming the variable, the value and what is accepted.
    static Settings from_environment(const std::function<std::optional<std::string>(const char*)>& get);
    static Settings from_environment();
};

// "f16" or a cold format's name, for messages.
std::string_view format_name(const ColdFormat* format) noexcept;
// The formats that settings accept: "f16 q8 ...".
std::string format_names();

// "f16,q8,q4,q3": the formats behind f16, narrower and narrower. Throws Error without the variable's name.
std::vector<const ColdFormat*> parse_ladder(std::string_view text);
// "4096", "0.5" (MiB) or "25%". The same.
Budget parse_budget(std::string_view text);
std::string budget_text(const Budget& budget);                          // "4096 MiB", "25 % of F16"
std::string ladder_text(const std::vector<const ColdFormat*>& ladder);  // "f16,q8,q4,q3"

// "0-1,-2--1:q8,5:q6/q5": layers or ranges of layers, separated by commas, and after a colon their format, or
// K's and V's separated by a slash; "-" leaves that one as it is elsewhere. Throws Error without the
// variable's name: what is wrong with which part.
std::vector<LayerRule> parse_layer_rules(std::string_view text);

}  // namespace mixed_kv
