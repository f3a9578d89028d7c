#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "mixed-kv-bench/attention_bench.h"
#include "mixed-kv-bench/model_bench.h"
#include "mixed-kv-bench/prompt_bench.h"

namespace mixed_kv::tools {

// Times in microseconds, bandwidths in bytes per second; `host` and `speedup` by the host's cache type.
nlohmann::ordered_json to_json(const AttentionReport& report);
nlohmann::ordered_json to_json(const ModelReport& report);
nlohmann::ordered_json to_json(const PromptReport& report);

std::string to_csv(const AttentionReport& report);
std::string to_csv(const ModelReport& report);
std::string to_csv(const PromptReport& report);

// A table for people, as Markdown or aligned text, with the machine above it and its roofline below.
std::string to_table(const AttentionReport& report, bool markdown);
std::string to_table(const ModelReport& report, bool markdown);
std::string to_table(const PromptReport& report, bool markdown);

}  // namespace mixed_kv::tools
