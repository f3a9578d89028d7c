#pragma once

#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "mixed-kv-eval/evaluation.h"
#include "mixed-kv-eval/greedy.h"
#include "mixed-kv-eval/recall.h"

namespace mixed_kv::tools {

// Everything that a run found out.
struct EvaluationReport {
    Evaluation evaluation;
    std::vector<RecallResult> recalls;  // of all configurations, or empty
    std::vector<GreedyResult> greedy;
    // Mean and 99.9 % KLD are also given relative to this configuration's; empty: no.
    std::string baseline;
};

// A ratio of two mean KLDs. nullopt: not resolved, one of them is below three times the noise floor.
std::optional<double> resolved_ratio(double kld, double baseline, double noise_floor);

// A result that says nothing about cold rows, since there were none. Not of a cache that never has any.
bool nothing_was_cold(const Result& result);

nlohmann::json to_json(const EvaluationReport& report);
// A Markdown table; figures below three times the noise floor are marked.
std::string to_markdown(const EvaluationReport& report);
std::string to_csv(const EvaluationReport& report);

// Mean KLD against bits per value; recall against distance. SVG.
std::string kld_plot(const EvaluationReport& report);
std::string recall_plot(const EvaluationReport& report);

}  // namespace mixed_kv::tools
