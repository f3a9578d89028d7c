#include "mixed-kv-eval/output.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>

#include "mixed-kv-eval/intervals.h"
#include "mixed-kv-eval/plot.h"

namespace mixed_kv::tools {

namespace {

template <typename T>
const T* find(const std::vector<T>& results, const std::string& name) {
    const auto found =
        std::find_if(results.begin(), results.end(), [&](const auto& r) { return r.name == name; });
    return found == results.end() ? nullptr : &*found;
}

// "0.31 [0.28, 0.35]", or what the table says instead.
std::string ratio_text(const EvaluationReport& report, double kld, double baseline,
                       const std::optional<Interval>& interval) {
    const auto ratio = resolved_ratio(kld, baseline, report.evaluation.noise_floor);
    if (!ratio) return "not resolved";
    return interval ? fmt::format("{:.3g} [{:.3g}, {:.3g}]", *ratio, interval->low, interval->high)
                    : fmt::format("{:.3g}", *ratio);
}

// " [1.2e-04, 1.5e-04]"
std::string interval_text(const std::optional<Intervals>& all, Interval Intervals::*figure) {
    if (!all) return "";
    const Interval& interval = (*all).*figure;
    return fmt::format(" [{:.1e}, {:.1e}]", interval.low, interval.high);
}

nlohmann::json interval_json(const Interval& interval) { return {interval.low, interval.high}; }

// The intervals of a result as JSON fields; null where contexts are too few, or nothing is divided by.
void add_intervals(nlohmann::json& json, const std::optional<Intervals>& all, bool has_baseline) {
    const auto put = [&](const char* field, const std::optional<Interval>& interval) {
        json[field] = interval ? interval_json(*interval) : nlohmann::json(nullptr);
    };
    put("kld_mean_interval", all ? std::optional(all->kld_mean) : std::nullopt);
    put("kld_p999_interval", all ? std::optional(all->kld_p999) : std::nullopt);
    put("top1_interval", all ? std::optional(all->top1) : std::nullopt);
    if (!has_baseline) return;
    put("kld_mean_ratio_interval", all ? all->kld_mean_ratio : std::nullopt);
    put("kld_p999_ratio_interval", all ? all->kld_p999_ratio : std::nullopt);
}

std::optional<Intervals> intervals_of(const Result& result, const Result* baseline) {
    return intervals(result.contexts, baseline == nullptr ? nullptr : &baseline->contexts);
}

double quarter_share(const RecallResult& recall, int quarter) {
    return double(recall.right_by_quarter[quarter]) / std::max(1, recall.n_by_quarter[quarter]);
}

}  // namespace

std::optional<double> resolved_ratio(double kld, double baseline, double noise_floor) {
    if (kld < 3 * noise_floor || baseline < 3 * noise_floor || baseline <= 0) return std::nullopt;
    return kld / baseline;
}

bool nothing_was_cold(const Result& result) { return !result.cold && result.has_window; }

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
            {"contexts", r.n_chunks},
        };
        if (baseline != nullptr) {
            const auto ratio = resolved_ratio(r.divergence.kld_mean, baseline->divergence.kld_mean,
                                              report.evaluation.noise_floor);
            c["kld_mean_ratio"] = ratio ? nlohmann::json(*ratio) : nlohmann::json("not resolved");
            const auto tail = resolved_ratio(r.divergence.kld_p999, baseline->divergence.kld_p999,
                                             report.evaluation.noise_floor);
            c["kld_p999_ratio"] = tail ? nlohmann::json(*tail) : nlohmann::json("not resolved");
        }
        add_intervals(c, intervals_of(r, baseline), baseline != nullptr);
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
        const std::optional<Intervals> trust = intervals_of(r, baseline);
        text += fmt::format(
            "| {} | {:.2f} | {:.2e}{}{} | {:.1e} | {:.1e} | {:.1e}{} | {:.2f} | {:.4f} | {:.3f} |", r.name,
            r.bits_per_value, d.kld_mean, interval_text(trust, &Intervals::kld_mean), below ? " (*)" : "",
            d.kld_median, d.kld_p99, d.kld_p999, interval_text(trust, &Intervals::kld_p999), 100 * d.top1,
            d.rms_delta_p, d.ppl);
        if (baseline != nullptr) {
            text += fmt::format(" {} / {} |",
                                ratio_text(report, d.kld_mean, baseline->divergence.kld_mean,
                                           trust ? trust->kld_mean_ratio : std::nullopt),
                                ratio_text(report, d.kld_p999, baseline->divergence.kld_p999,
                                           trust ? trust->kld_p999_ratio : std::nullopt));
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
    if (!evaluation.results.empty()) {
        const int n = evaluation.results.front().n_chunks;
        text += n < int(kLeastContexts)
                    ? fmt::format("\n{} contexts: too few for intervals\n", n)
                    : fmt::format(
                          "\n[ ]: 95 % intervals over {} contexts, drawn again {} times with replacement, "
                          "the same for every cache\n",
                          n, kDraws);
    }
    if (unresolved) text += "\n(*) below three times the noise floor: not resolved\n";
    return text;
}

std::string to_csv(const EvaluationReport& report) {
    std::string text =
        "name,bits_per_value,kld_mean,kld_median,kld_p99,kld_p999,top1,rms_delta_p,ppl,kv_bytes,recall,"
        "greedy,kld_mean_low,kld_mean_high,kld_p999_low,kld_p999_high\n";
    for (const Result& r : report.evaluation.results) {
        const auto& d = r.divergence;
        const RecallResult* recall = find(report.recalls, r.name);
        const GreedyResult* greedy = find(report.greedy, r.name);
        const std::optional<Intervals> trust = intervals_of(r, nullptr);
        const auto ends = [&](Interval Intervals::*figure) {
            return trust ? fmt::format("{},{}", ((*trust).*figure).low, ((*trust).*figure).high) : ",";
        };
        text += fmt::format("\"{}\",{},{},{},{},{},{},{},{},{},{},{},{},{}\n", r.name, r.bits_per_value,
                            d.kld_mean, d.kld_median, d.kld_p99, d.kld_p999, d.top1, d.rms_delta_p, d.ppl,
                            r.kv_bytes, recall == nullptr ? std::string() : std::to_string(recall->score()),
                            greedy == nullptr ? std::string() : std::to_string(greedy->mean()),
                            ends(&Intervals::kld_mean), ends(&Intervals::kld_p999));
    }
    return text;
}

std::string kld_plot(const EvaluationReport& report) {
    Plot plot{
        "Divergence from exact F16 rows", "bits per value, everything included", "mean KLD (nats)", true, {}};
    // The host's types are a family, with the same window and sinks another; ours are points of their own.
    std::map<std::string, std::vector<const Result*>> families;  // by "+WINDOW+SINKS"
    for (const Result& r : report.evaluation.results) {
        const bool is_host = r.name.rfind("host:", 0) == 0;
        if (is_host && r.name.find(":norot") == std::string::npos && r.name != "host:f16") {
            const auto plus = r.name.find('+');
            families[plus == std::string::npos ? "" : r.name.substr(plus)].push_back(&r);
        } else if (r.name != "f16" && r.name != "host:f16") {
            plot.series.push_back({r.name, {r.bits_per_value}, {r.divergence.kld_mean}, false});
        }
    }
    std::vector<Plot::Series> hosts;
    for (auto& [suffix, results] : families) {
        std::sort(results.begin(), results.end(),
                  [](const Result* a, const Result* b) { return a->bits_per_value < b->bits_per_value; });
        Plot::Series series{"llama.cpp" + (suffix.empty() ? "" : " " + suffix), {}, {}, true};
        for (const Result* r : results) {
            series.x.push_back(r->bits_per_value);
            series.y.push_back(r->divergence.kld_mean);
        }
        hosts.push_back(std::move(series));
    }
    plot.series.insert(plot.series.begin(), hosts.begin(), hosts.end());
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
