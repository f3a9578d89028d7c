#pragma once

#include <functional>
#include <string>
#include <vector>

#include "mixed-kv-eval/evaluation.h"
#include "mixed_kv/calibration.h"

namespace mixed_kv::tools {

// How much each layer's K and V suffers from each format: the mean KLD when everything else is exact and only
// sinks stay in FP16. Each tensor is measured in one narrow format; how K and V go with the format is
// measured with all layers at once. The product of both stands for the rest.
// Progress and failures as evaluate().
Calibration calibrate(const std::string& model_name, const Plugin& plugin, llama_model* plugin_model,
                      const std::vector<llama_token>& tokens, const EvaluationOptions& options,
                      const std::function<void(int, int)>& progress);

}  // namespace mixed_kv::tools
