#pragma once

#include "ggml.h"

namespace mixed_kv::plugin {

// One line through the host's log callback, without asking for memory: there may be none. ggml's own function
// allocates for lines above 127 characters, and does not look at what it got.
[[gnu::format(printf, 2, 3)]] void log_line(ggml_log_level level, const char* format, ...) noexcept;

}  // namespace mixed_kv::plugin

#define MIXED_KV_LOG(level, format, ...) \
    ::mixed_kv::plugin::log_line(GGML_LOG_LEVEL_##level, format __VA_OPT__(, ) __VA_ARGS__)
