#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "mixed-kv-run/generation.h"

namespace mixed_kv::tools {

// Index of the first generated token that differs; nullopt when all are equal.
std::optional<std::size_t> first_difference(const RunResult& a, const RunResult& b);

nlohmann::ordered_json to_json(const RunResult& result);

// The figures after the text, f16 beside them when it was run too.
std::string summary(const RunResult& result, const RunResult* f16);

}  // namespace mixed_kv::tools
