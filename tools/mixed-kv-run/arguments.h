#pragma once

#include <optional>

#include "common/generation_options.h"

namespace mixed_kv::tools {

struct RunArguments : GenerationArguments {
    bool compare = false;
    bool json = false;
    bool mixed = true;
    bool warm_up = true;
    bool ignore_eos = false;  // an end-of-text token is a token like any other
    bool verbose = false;
    bool watch = false;  // show how the cache fills
};

// nullopt: --help or --version was asked for and printed. Throws UsageError, and std::runtime_error for a
// prompt file that cannot be read. Exports the cache's settings to the environment.
std::optional<RunArguments> parse_run_arguments(int argc, char** argv);

}  // namespace mixed_kv::tools
