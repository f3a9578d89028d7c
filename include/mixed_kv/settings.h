#pragma once

#include <functional>
#include <optional>
#include <string>
#include <string_view>

#include "mixed_kv/cold_format.h"

namespace mixed_kv {

// The user's settings, from the environment (docs/settings.md has the table).
struct Settings {
    int window = 64;                           // GGML_MIXED_KV_WINDOW: rows per sequence kept in FP16
    int sinks = 4;                             // GGML_MIXED_KV_SINKS: first rows per sequence kept in FP16
    const ColdFormat* key_format = nullptr;    // GGML_MIXED_KV_K; nullptr: f16
    const ColdFormat* value_format = nullptr;  // GGML_MIXED_KV_V
    int verbose = 0;                           // GGML_MIXED_KV_VERBOSE: 0 .. 2

    // Reads and checks every GGML_MIXED_KV_* variable. get(name) returns nullopt when unset. Throws Error
    // naming the variable, the value and what is accepted.
    static Settings from_environment(const std::function<std::optional<std::string>(const char*)>& get);
    static Settings from_environment();
};

// "f16" or a cold format's name, for messages.
std::string_view format_name(const ColdFormat* format) noexcept;

}  // namespace mixed_kv
