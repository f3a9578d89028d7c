#include "mixed-kv-eval/output.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "mixed-kv-eval/plot.h"

namespace mixed_kv::tools {

namespace {

template <typename T>
const T* find(const std::vector<T>& results, const std::string& name) {
    const auto found =
        std::find_if(results.begin(), results.end(), [&](const auto& r) { return r.name == name; });
    return found == results.end() ? nullptr : &*found;
}

// "0.31", or what the table says instead.
std::string ratio_text(const EvaluationReport& report, double kld, double baseline) {
    const auto ratio = resolved_ratio(kld, baseline, report.evaluation.noise_floor);
    return ratio ? fmt::format("{:.3g}", *ratio) : "not resolved";
}

double quarter_share(const RecallResult& recall, int quarter) {
    return double(recall.right_by_quarter[quarter]) / std::max(1, recall.n_by_quarter[quarter]);
}

}  // namespace

std::optional<double> resolved_ratio(double kld, double baseline, double noise_floor) {
    if (kld < 3 * noise_floor || baseline < 3 * noise_floor || baseline <= 0) return std::nullopt;
    return kld / baseline;
}

bool nothing_was_cold(const Result& result) { return !result.cold && result.name.rfind("mixed", 0) == 0; }

nlohmann::json to_json(const EvaluationReport& report) {
    const Result* baseline = find(report.evaluation.results, report.baseline);
    nlohmann::json configs = nlohmann::json::array();
    for (const Result& r : report.evaluation.results) {
        nlohmann::json c = {
            {"name", r.name},
            {"bits_per_value", r.bits_per_value},
            {"kld_mean", r.divergence.kld_mean},
            {"kld_median", r.divergence.kld_median},
            {"kld_p99", r.divergence.kld_p99},
            {"kld_p999", r.divergence.kld_p999},
            {"kld_max", r.divergence.kld_max},
            {"resolved", r.divergence.kld_mean >= 3 * report.evaluation.noise_floor},
            {"top1", r.divergence.top1},
            {"rms_delta_p", r.divergence.rms_delta_p},
            {"ppl", r.divergence.ppl},
            {"kv_bytes", r.kv_bytes},
            {"cold", r.cold},
        };
        if (baseline != nullptr) {
            const auto ratio = resolved_ratio(r.divergence.kld_mean, baseline->divergence.kld_mean,
                                              report.evaluation.noise_floor);
            c["kld_mean_ratio"] = ratio ? nlohmann::json(*ratio) : nlohmann::json("not resolved");
        }
        if (const RecallResult* recall = find(report.recalls, r.name)) {
            c["recall"] = recall->score();
            c["recall_trials"] = recall->n;
            for (int i = 0; i < 4; ++i) c["recall_by_distance"].push_back(quarter_share(*recall, i));
        }
        if (const GreedyResult* greedy = find(report.greedy, r.name)) {
            c["greedy_same_mean"] = greedy->mean();
            c["greedy_same"] = greedy->same;
        }
        configs.push_back(c);
    }
    nlohmann::json json = {{"noise_floor", report.evaluation.noise_floor},
                           {"positions", report.evaluation.n_scored},
                           {"configs", configs}};
    if (!report.baseline.empty()) json["baseline"] = report.baseline;
    return json;
}

std::string to_markdown(const EvaluationReport& report) {
    const Evaluation& evaluation = report.evaluation;
    const Result* baseline = find(evaluation.results, report.baseline);
    std::string text =
        fmt::format("{} scored positions; noise floor (mean KLD of F16 through other kernels) {:.1e}\n\n",
                    evaluation.n_scored, evaluation.noise_floor);
    std::string head =
        "| cache | bits per value | mean KLD | median | 99 % | 99.9 % | top-1 % | RMS dp | PPL |";
    std::string rule = "| --- | --- | --- | --- | --- | --- | --- | --- | --- |";
    const auto column = [&](const std::string& name) {
        head += ' ' + name + " |";
        rule += " --- |";
    };
    if (baseline != nullptr) column(fmt::format("mean / 99.9 % of {}'s", report.baseline));
    if (!report.recalls.empty()) column("recall %");
    if (!report.greedy.empty()) column("greedy tokens alike");
    text += head + '\n' + rule + '\n';
    bool unresolved = false;
    for (const Result& r : evaluation.results) {
        const auto& d = r.divergence;
        const bool below = d.kld_mean < 3 * evaluation.noise_floor;
        unresolved = unresolved || below;
        text +=
            fmt::format("| {} | {:.2f} | {:.2e}{} | {:.1e} | {:.1e} | {:.1e} | {:.2f} | {:.4f} | {:.3f} |",
                        r.name, r.bits_per_value, d.kld_mean, below ? " (*)" : "", d.kld_median, d.kld_p99,
                        d.kld_p999, 100 * d.top1, d.rms_delta_p, d.ppl);
        if (baseline != nullptr) {
            text += fmt::format(" {} / {} |", ratio_text(report, d.kld_mean, baseline->divergence.kld_mean),
                                ratio_text(report, d.kld_p999, baseline->divergence.kld_p999));
        }
        if (!report.recalls.empty()) {
            const RecallResult* recall = find(report.recalls, r.name);
            text +=
                recall == nullptr ? " - |" : fmt::format(" {:.1f} ({}) |", 100 * recall->score(), recall->n);
        }
        if (!report.greedy.empty()) {
            const GreedyResult* greedy = find(report.greedy, r.name);
            text += greedy == nullptr ? " - |" : fmt::format(" {:.1f} |", greedy->mean());
        }
        text += '\n';
    }
    for (const Result& r : evaluation.results) {
        if (nothing_was_cold(r)) text += fmt::format("\n{}: nothing was cold where it was scored\n", r.name);
    }
    if (unresolved) text += "\n(*) below three times the noise floor: not resolved\n";
    return text;
}

std::string to_csv(const EvaluationReport& report) {
    std::string text =
        "name,bits_per_value,kld_mean,kld_median,kld_p99,kld_p999,top1,rms_delta_p,ppl,kv_bytes,recall,"
        "greedy\n";
    for (const Result& r : report.evaluation.results) {
        const auto& d = r.divergence;
        const RecallResult* recall = find(report.recalls, r.name);
        const GreedyResult* greedy = find(report.greedy, r.name);
        text += fmt::format("\"{}\",{},{},{},{},{},{},{},{},{},{},{}\n", r.name, r.bits_per_value, d.kld_mean,
                            d.kld_median, d.kld_p99, d.kld_p999, d.top1, d.rms_delta_p, d.ppl, r.kv_bytes,
                            recall == nullptr ? std::string() : std::to_string(recall->score()),
                            greedy == nullptr ? std::string() : std::to_string(greedy->mean()));
    }
    return text;
}

std::string kld_plot(const EvaluationReport& report) {
    Plot plot{
        "Divergence from exact F16 rows", "bits per value, everything included", "mean KLD (nats)", true, {}};
    // The host's types are a family; ours are points of their own.
    Plot::Series host{"llama.cpp", {}, {}, true};
    std::vector<const Result*> hosts;
    for (const Result& r : report.evaluation.results) {
        const bool is_host = r.name.rfind("host:", 0) == 0;
        if (is_host && r.name.find(":norot") == std::string::npos && r.name != "host:f16") {
            hosts.push_back(&r);
        } else if (r.name != "f16" && r.name != "host:f16") {
            plot.series.push_back({r.name, {r.bits_per_value}, {r.divergence.kld_mean}, false});
        }
    }
    std::sort(hosts.begin(), hosts.end(),
              [](const Result* a, const Result* b) { return a->bits_per_value < b->bits_per_value; });
    for (const Result* r : hosts) {
        host.x.push_back(r->bits_per_value);
        host.y.push_back(r->divergence.kld_mean);
    }
    plot.series.insert(plot.series.begin(), host);
    return plot.to_svg();
}

std::string recall_plot(const EvaluationReport& report) {
    Plot plot{"Recall by distance",
              "distance from fact to question, of the longest",
              "answered right (%)",
              false,
              {}};
    for (const RecallResult& r : report.recalls) {
        Plot::Series series{r.name, {}, {}, true};
        for (int i = 0; i < 4; ++i) {
            series.x.push_back((i + 0.5) / 4);
            series.y.push_back(100 * quarter_share(r, i));
        }
        plot.series.push_back(series);
    }
    return plot.to_svg();
}

}  // namespace mixed_kv::tools
