#include "mixed-kv-eval/calibrate.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <stdexcept>

#include "common/host_kv_tensors.h"
#include "mixed_kv/error.h"

namespace mixed_kv::tools {

namespace {

constexpr const char* kProbe = "q3";  // well above the noise, and still near the formats that are chosen
constexpr std::size_t kAtOnce = 12;   // contexts beside the reference

// Everything exact but what `rule` says, for the rows behind the sinks.
Configuration probe(const std::string& rule) {
    Configuration c = parse_configuration("mixed:k=f16,v=f16,window=0,sinks=4,layers=" + rule);
    c.name = rule;
    return c;
}

std::string rule(const std::string& layers, KvRole role, std::string_view format) {
    return fmt::format("{}:{}", layers,
                       role == KvRole::key ? fmt::format("{}/-", format) : fmt::format("-/{}", format));
}

}  // namespace

Calibration calibrate(const std::string& model_name, const Plugin& plugin, llama_model* plugin_model,
                      const std::vector<llama_token>& tokens, const EvaluationOptions& options,
                      const std::function<void(int, int)>& progress) {
    Calibration calibration;
    calibration.model = model_name;
    {
        ContextOptions context;
        context.n_ctx = std::uint32_t(options.n_ctx);
        const EvaluatedCache cache(parse_configuration("f16"), plugin, nullptr, plugin_model, context);
        for (const mixed_kv_tensor_info& tensor : cache.tensors()) {
            const int layer = kv_tensor_layer(tensor.name);
            if (tensor.mixed == 0 || layer < 0 || tensor.n_head < 1) {
                throw std::runtime_error(fmt::format("{} would not be mixed: nothing to calibrate ({})",
                                                     tensor.name, tensor.reason));
            }
            calibration.tensors.push_back({layer,
                                           tensor.is_value != 0 ? KvRole::value : KvRole::key,
                                           tensor.n_head * tensor.head_dim,
                                           tensor.head_dim,
                                           {}});
        }
    }

    std::vector<Configuration> probes;
    for (const KvRole role : {KvRole::key, KvRole::value}) {
        for (const ColdFormat& format : cold_formats())
            probes.push_back(probe(rule("0--1", role, format.name)));
        for (const Calibration::Tensor& tensor : calibration.tensors) {
            if (tensor.role == role)
                probes.push_back(probe(rule(std::to_string(tensor.layer), role, kProbe)));
        }
    }
    std::map<std::string, double> kld;
    EvaluationOptions evaluation_options = options;
    evaluation_options.noise_floor_chunks = 0;
    for (std::size_t begin = 0; begin < probes.size(); begin += kAtOnce) {
        const auto end = std::min(probes.size(), begin + kAtOnce);
        const std::vector<Configuration> some(probes.begin() + std::ptrdiff_t(begin),
                                              probes.begin() + std::ptrdiff_t(end));
        const Evaluation evaluation =
            evaluate(some, plugin, nullptr, plugin_model, tokens, evaluation_options, [](int, int) {});
        for (const Result& result : evaluation.results) {
            if (!result.cold) {
                throw std::runtime_error(
                    fmt::format("nothing was cold where {} was scored, so nothing can be calibrated: give a "
                                "smaller --ubatch (now {}) or a longer -c (now {})",
                                result.name, options.n_ubatch, options.n_ctx));
            }
            kld[result.name] = result.divergence.kld_mean;
        }
        progress(int(end), int(probes.size()));
    }

    for (Calibration::Tensor& tensor : calibration.tensors) {
        const double here = kld.at(rule(std::to_string(tensor.layer), tensor.role, kProbe));
        const double all = kld.at(rule("0--1", tensor.role, kProbe));
        for (const ColdFormat& format : cold_formats()) {
            tensor.kld.push_back(all > 0 ? here * kld.at(rule("0--1", tensor.role, format.name)) / all : 0);
        }
    }
    return calibration;
}

}  // namespace mixed_kv::tools
