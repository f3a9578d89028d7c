#pragma once

#include <optional>
#include <string>

#include "common/generation_options.h"

namespace mixed_kv::tools {

struct MonitorArguments : GenerationArguments {
    int layer = -1;      // -1: all
    bool mixed = false;  // the plugin's cache
    std::string save_gguf;
    bool sources = true;
    bool compact = false;
    bool keep_originals = false;  // K and V as they were written
    int max_steps = -1;           // steps to record; -1: all, 0: none
    std::string save_logits;
    bool quiet = false, verbose = false;
    std::string command_line;  // as given, for the trace
};

// nullopt: --help or --version was asked for and printed. Throws UsageError, and std::runtime_error for a
// prompt file that cannot be read. Exports the cache's settings to the environment.
std::optional<MonitorArguments> parse_monitor_arguments(int argc, char** argv);

}  // namespace mixed_kv::tools
