#include "mixed-kv-eval/output.h"

#include <fmt/format.h>

#include <algorithm>

namespace mixed_kv::tools {

namespace {

const RecallResult* find(const std::vector<RecallResult>& recalls, const std::string& name) {
    const auto found =
        std::find_if(recalls.begin(), recalls.end(), [&](const auto& r) { return r.name == name; });
    return found == recalls.end() ? nullptr : &*found;
}

}  // namespace

nlohmann::json to_json(const Evaluation& evaluation, const std::vector<RecallResult>& recalls) {
    nlohmann::json configs = nlohmann::json::array();
    for (const Result& r : evaluation.results) {
        nlohmann::json c = {
            {"name", r.name},
            {"bits_per_value", r.bits_per_value},
            {"kld_mean", r.divergence.kld_mean},
            {"kld_median", r.divergence.kld_median},
            {"kld_p99", r.divergence.kld_p99},
            {"kld_p999", r.divergence.kld_p999},
            {"kld_max", r.divergence.kld_max},
            {"top1", r.divergence.top1},
            {"rms_delta_p", r.divergence.rms_delta_p},
            {"ppl", r.divergence.ppl},
            {"kv_bytes", r.kv_bytes},
        };
        if (const RecallResult* recall = find(recalls, r.name)) {
            c["recall"] = recall->score();
            c["recall_trials"] = recall->n;
            for (int i = 0; i < 4; ++i) {
                const int n = std::max(1, recall->n_by_quarter[i]);
                c["recall_by_distance"].push_back(double(recall->right_by_quarter[i]) / n);
            }
        }
        configs.push_back(c);
    }
    return {
        {"noise_floor", evaluation.noise_floor}, {"positions", evaluation.n_scored}, {"configs", configs}};
}

std::string to_markdown(const Evaluation& evaluation, const std::vector<RecallResult>& recalls) {
    std::string text =
        fmt::format("{} scored positions; noise floor (mean KLD of F16 through other kernels) {:.1e}\n\n",
                    evaluation.n_scored, evaluation.noise_floor);
    text +=
        "| cache | bits per value | mean KLD | median | 99 % | 99.9 % | top-1 % | RMS dp | PPL | recall % "
        "|\n";
    text += "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n";
    bool unresolved = false;
    for (const Result& r : evaluation.results) {
        const auto& d = r.divergence;
        const bool below = d.kld_mean < 3 * evaluation.noise_floor;
        unresolved = unresolved || below;
        const RecallResult* recall = find(recalls, r.name);
        text += fmt::format(
            "| {} | {:.2f} | {:.2e}{} | {:.1e} | {:.1e} | {:.1e} | {:.2f} | {:.4f} | {:.3f} | {} |\n", r.name,
            r.bits_per_value, d.kld_mean, below ? " (*)" : "", d.kld_median, d.kld_p99, d.kld_p999,
            100 * d.top1, d.rms_delta_p, d.ppl,
            recall == nullptr ? "-" : fmt::format("{:.1f} ({})", 100 * recall->score(), recall->n));
    }
    if (unresolved) text += "\n(*) below three times the noise floor: not resolved\n";
    return text;
}

std::string to_csv(const Evaluation& evaluation, const std::vector<RecallResult>& recalls) {
    std::string text =
        "name,bits_per_value,kld_mean,kld_median,kld_p99,kld_p999,top1,rms_delta_p,ppl,kv_bytes,recall\n";
    for (const Result& r : evaluation.results) {
        const auto& d = r.divergence;
        const RecallResult* recall = find(recalls, r.name);
        text += fmt::format("\"{}\",{},{},{},{},{},{},{},{},{},{}\n", r.name, r.bits_per_value, d.kld_mean,
                            d.kld_median, d.kld_p99, d.kld_p999, d.top1, d.rms_delta_p, d.ppl, r.kv_bytes,
                            recall == nullptr ? std::string() : std::to_string(recall->score()));
    }
    return text;
}

}  // namespace mixed_kv::tools
