#pragma once

#include <string>

#include "mixed-kv-bench/model_bench.h"
#include "mixed-kv-bench/prompt_bench.h"

namespace mixed_kv::tools {

// Tokens per second against context depth, one line per cache, as SVG. Depths are equally spaced, rates
// logarithmic.
std::string plot_svg(const ModelReport& report);
std::string plot_svg(const PromptReport& report);

}  // namespace mixed_kv::tools
