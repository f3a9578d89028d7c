#pragma once

#include "ggml.h"

extern "C" void ggml_log_internal(enum ggml_log_level level, const char* format, ...);

// One line through the host's log callback.
#define MIXED_KV_LOG(level, format, ...) \
    ggml_log_internal(GGML_LOG_LEVEL_##level, "mixed-kv: " format "\n" __VA_OPT__(, ) __VA_ARGS__)
