#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "mixed-kv-eval/evaluation.h"
#include "mixed-kv-eval/recall.h"

namespace mixed_kv::tools {

nlohmann::json to_json(const Evaluation& evaluation, const std::vector<RecallResult>& recalls);
// A Markdown table; figures below three times the noise floor are marked.
std::string to_markdown(const Evaluation& evaluation, const std::vector<RecallResult>& recalls);
std::string to_csv(const Evaluation& evaluation, const std::vector<RecallResult>& recalls);

}  // namespace mixed_kv::tools
