#include "kqv-tensor-reader/report.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <set>

namespace mixed_kv::trace_tools {

namespace {

template <typename... Arguments>
std::string format(const char* pattern, Arguments... arguments) {
    char text[512];
    std::snprintf(text, sizeof text, pattern, arguments...);
    return text;
}

const char* cache_name(trace::CacheKind cache) {
    return cache == trace::CacheKind::mixed ? "mixed" : "standard";
}

// JSON has no NaN and no infinity.
nlohmann::ordered_json number(double value) {
    return std::isfinite(value) ? nlohmann::ordered_json(value) : nlohmann::ordered_json(nullptr);
}

nlohmann::ordered_json figures_json(const ErrorFigures& figures) {
    if (!figures.computed) return nullptr;
    return {{"max_error", number(figures.max_error)},
            {"rms_error", number(figures.rms_error)},
            {"max_relative", number(figures.max_relative)},
            {"limit_share", number(figures.limit_share)},
            {"failed_rows", figures.failed_rows}};
}

// The row with the largest share of its limit.
nlohmann::ordered_json place_json(const RecordCheck& check) {
    const ErrorFigures& worst = check.worst();
    return {{"layer", check.layer},
            {"step", check.step},
            {"token", worst.worst_token},
            {"head", worst.worst_head},
            {"stream", worst.worst_stream}};
}

nlohmann::ordered_json quantization_json(const QuantizationFigures& figures) {
    if (figures.n_cells == 0) return nullptr;
    return {{"n_cells", figures.n_cells},
            {"rms", number(figures.rms())},
            {"relative", number(figures.relative())},
            {"max_error", number(figures.max_error)}};
}

nlohmann::ordered_json quantization_json(const RecordQuantization& both) {
    return {{"k", quantization_json(both.k)}, {"v", quantization_json(both.v)}};
}

// Green within tolerance (paler the closer to it), red beyond, grey where nothing was checked.
std::string colour(const RecordCheck& check) {
    if (!check.checked) return "#bbbbbb";
    const double ratio = check.limit_share();
    if (!(ratio <= 1)) {
        const double over = std::isfinite(ratio) ? std::clamp(std::log10(ratio) / 4, 0.0, 1.0) : 1.0;
        return format("#%02x%02x%02x", int(230 - 100 * over), int(80 * (1 - over)), int(60 * (1 - over)));
    }
    const double share = ratio > 0 ? std::clamp(1 + std::log10(ratio) / 4, 0.0, 1.0) : 0.0;  // 1e-4 .. 1
    return format("#%02x%02x%02x", int(20 + 220 * share), int(110 + 110 * share), int(60 + 60 * share));
}

}  // namespace

bool Report::pass() const {
    return !records.empty() &&
           std::all_of(records.begin(), records.end(), [](const Entry& e) { return e.check.pass; });
}

const char* Report::cache() const {
    const bool mixed = std::any_of(records.begin(), records.end(),
                                   [](const Entry& e) { return e.check.cache == trace::CacheKind::mixed; });
    return mixed ? "mixed" : "standard";
}

size_t Report::n_records(trace::CacheKind cache) const {
    return size_t(std::count_if(records.begin(), records.end(),
                                [cache](const Entry& e) { return e.check.cache == cache; }));
}

size_t Report::n_failed(trace::CacheKind cache) const {
    return size_t(std::count_if(records.begin(), records.end(),
                                [cache](const Entry& e) { return e.check.cache == cache && !e.check.pass; }));
}

size_t Report::n_steps() const {
    std::set<int32_t> steps;
    for (const Entry& entry : records) steps.insert(entry.check.step);
    return steps.size();
}

size_t Report::n_layers() const {
    std::set<int32_t> layers;
    for (const Entry& entry : records) layers.insert(entry.check.layer);
    return layers.size();
}

std::map<int32_t, RecordQuantization> Report::quantization_by_layer() const {
    std::map<int32_t, RecordQuantization> layers;
    for (const Entry& entry : records) {  // by step: the last one stays
        if (entry.quantization.k.n_cells + entry.quantization.v.n_cells > 0) {
            layers[entry.check.layer] = entry.quantization;
        }
    }
    return layers;
}

double Report::max_error() const {
    double max = 0;
    for (const Entry& entry : records) {
        const double error = entry.check.max_error();
        if (std::isnan(error)) return error;
        max = std::max(max, error);
    }
    return max;
}

const RecordCheck* Report::worst() const {
    const RecordCheck* worst = nullptr;
    for (const Entry& entry : records) {
        if (!entry.check.checked) continue;
        const double share = entry.check.limit_share();
        if (std::isnan(share)) return &entry.check;
        if (worst == nullptr || share > worst->limit_share()) worst = &entry.check;
    }
    return worst;
}

nlohmann::ordered_json to_json(const Report& report) {
    const RecordCheck* worst = report.worst();
    nlohmann::ordered_json json = {{"pass", report.pass()},
                                   {"cache", report.cache()},
                                   {"steps", report.n_steps()},
                                   {"layers", report.n_layers()},
                                   {"max_error", number(report.max_error())},
                                   {"tolerance", report.tolerance},
                                   {"limit_share", worst ? number(worst->limit_share()) : nullptr},
                                   {"limit_at", worst ? place_json(*worst) : nullptr},
                                   {"references", report.references},
                                   {"file", report.file},
                                   {"mixed_records", report.n_records(trace::CacheKind::mixed)},
                                   {"mixed_failed", report.n_failed(trace::CacheKind::mixed)},
                                   {"standard_records", report.n_records(trace::CacheKind::standard)},
                                   {"standard_failed", report.n_failed(trace::CacheKind::standard)},
                                   {"records", nlohmann::ordered_json::array()}};
    if (!report.originals.empty()) {
        json["originals"] = report.originals;
        json["quantization"] = nlohmann::ordered_json::array();
        for (const auto& [layer, figures] : report.quantization_by_layer()) {
            nlohmann::ordered_json of_layer = {{"layer", layer}};
            of_layer.update(quantization_json(figures));
            json["quantization"].push_back(std::move(of_layer));
        }
    }
    for (const Report::Entry& entry : report.records) {
        const RecordCheck& check = entry.check;
        nlohmann::ordered_json record = {{"layer", check.layer},
                                         {"step", check.step},
                                         {"tensors", entry.tensors},
                                         {"max_error", number(check.max_error())},
                                         {"rms_error", number(check.rms_error())},
                                         {"n_hot", check.n_hot},
                                         {"n_cold", check.n_cold},
                                         {"cache", cache_name(check.cache)},
                                         {"pass", check.pass},
                                         {"checked", check.checked},
                                         {"n_tokens", check.n_tokens},
                                         {"n_kv", check.n_kv},
                                         {"max_relative", number(check.max_relative())},
                                         {"limit_share", number(check.limit_share())},
                                         {"float32", figures_json(check.torch)},
                                         {"double", figures_json(check.exact)}};
        if (!check.pass) record["problem"] = check.problem;
        if (!report.originals.empty()) record["quantization"] = quantization_json(entry.quantization);
        json["records"].push_back(std::move(record));
    }
    return json;
}

std::string to_csv(const Report& report) {
    std::string text =
        "layer,step,cache,n_tokens,n_kv,n_hot,n_cold,max_error,rms_error,max_relative,limit_share,"
        "max_error_float32,max_error_double,pass\n";
    const auto optional = [](const ErrorFigures& f) { return f.computed ? format("%.9g", f.max_error) : ""; };
    for (const Report::Entry& entry : report.records) {
        const RecordCheck& c = entry.check;
        text += format("%d,%d,%s,%lld,%lld,%lld,%lld,%.9g,%.9g,%.9g,%.9g,", c.layer, c.step,
                       cache_name(c.cache), (long long)c.n_tokens, (long long)c.n_kv, (long long)c.n_hot,
                       (long long)c.n_cold, c.max_error(), c.rms_error(), c.max_relative(), c.limit_share()) +
                optional(c.torch) + "," + optional(c.exact) + "," + (c.pass ? "1" : "0") + "\n";
    }
    return text;
}

std::string to_table(const Report& report, size_t n_rows) {
    std::vector<const RecordCheck*> checks;
    for (const Report::Entry& entry : report.records) checks.push_back(&entry.check);
    const bool cut = checks.size() > n_rows;
    if (cut) {
        // Larger first; NaN, and what was not checked although it should have been, before everything.
        const auto badness = [](const RecordCheck* c) {
            const double ratio = c->limit_share();
            return !c->checked || std::isnan(ratio) ? double(INFINITY) : ratio;
        };
        std::stable_sort(checks.begin(), checks.end(),
                         [&](const RecordCheck* a, const RecordCheck* b) { return badness(a) > badness(b); });
        checks.resize(n_rows);
    }
    std::string text =
        format("%5s %5s %8s %7s %7s %7s %7s %11s %11s %11s %9s  %s\n", "step", "layer", "cache", "tokens",
               "n_kv", "hot", "cold", "max error", "RMS", "relative", "of limit", "");
    for (const RecordCheck* check : checks) {
        const RecordCheck& c = *check;
        text += format("%5d %5d %8s %7lld %7lld %7lld %7lld ", c.step, c.layer, cache_name(c.cache),
                       (long long)c.n_tokens, (long long)c.n_kv, (long long)c.n_hot, (long long)c.n_cold);
        text += c.checked ? format("%11.3g %11.3g %11.3g %9.3g  %s\n", c.max_error(), c.rms_error(),
                                   c.max_relative(), c.limit_share(), c.pass ? "ok" : "FAIL")
                          : "not checked: recorded without sources\n";
    }
    if (cut) {
        text += format("the %zu largest of %zu records (--all: every one, by step)\n", checks.size(),
                       report.records.size());
    }
    return text;
}

std::string quantization_table(const Report& report, size_t n_rows) {
    if (report.originals.empty()) return "";
    const auto by_layer = report.quantization_by_layer();
    std::vector<std::pair<int32_t, RecordQuantization>> layers(by_layer.begin(), by_layer.end());
    const bool cut = layers.size() > n_rows;
    if (cut) {
        const auto badness = [](const RecordQuantization& q) {
            const double k = q.k.relative(), v = q.v.relative();
            return std::isnan(k) || std::isnan(v) ? double(INFINITY) : std::max(k, v);
        };
        std::stable_sort(layers.begin(), layers.end(),
                         [&](const auto& a, const auto& b) { return badness(a.second) > badness(b.second); });
        layers.resize(n_rows);
    }
    std::string text =
        "quantization error against " + report.originals + ", RMS and share of the rows' RMS:\n";
    const auto side = [](const QuantizationFigures& f) {
        return f.n_cells == 0
                   ? format("%26s", "no quantized rows")
                   : format("%11.3g %7.3g %% %5lld", f.rms(), 100 * f.relative(), (long long)f.n_cells);
    };
    text += format("%5s %26s   %26s\n", "layer", "K (RMS, share, cells)", "V (RMS, share, cells)");
    for (const auto& [layer, figures] : layers) {
        text += format("%5d ", layer) + side(figures.k) + "   " + side(figures.v) + "\n";
    }
    if (cut) text += format("the %zu largest of %zu layers (--all: every one)\n", n_rows, by_layer.size());
    return text;
}

std::string to_svg(const Report& report) {
    std::set<int32_t> step_set, layer_set;
    for (const Report::Entry& entry : report.records) {
        step_set.insert(entry.check.step);
        layer_set.insert(entry.check.layer);
    }
    const std::vector<int32_t> steps(step_set.begin(), step_set.end());
    const std::vector<int32_t> layers(layer_set.begin(), layer_set.end());
    const auto index = [](const std::vector<int32_t>& sorted, int32_t value) {
        return double(std::lower_bound(sorted.begin(), sorted.end(), value) - sorted.begin());
    };
    const double cell = steps.size() > 200 ? 5 : 14, left = 60, top = 50;
    const double width = left + cell * double(steps.size()) + 20,
                 height = top + cell * double(layers.size()) + 40;
    const RecordCheck* worst = report.worst();
    std::string svg = format(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%.0f\" height=\"%.0f\" font-family=\"sans-serif\" "
        "font-size=\"11\">\n<rect width=\"100%%\" height=\"100%%\" fill=\"white\"/>\n",
        std::max(width, 420.0), height);
    svg += format(
        "<text x=\"10\" y=\"18\">Error of kqv_out, %s cache: green within tolerance %g, red beyond</text>\n",
        report.cache(), report.tolerance);
    svg += format(
        "<text x=\"10\" y=\"34\">at most %.3g of the limit; rows: layers %d to %d; columns: steps %d to "
        "%d</text>\n",
        worst != nullptr ? worst->limit_share() : 0.0, layers.empty() ? 0 : layers.front(),
        layers.empty() ? 0 : layers.back(), steps.empty() ? 0 : steps.front(),
        steps.empty() ? 0 : steps.back());
    for (const Report::Entry& entry : report.records) {
        const RecordCheck& c = entry.check;
        svg += format(
            "<rect x=\"%.0f\" y=\"%.0f\" width=\"%.0f\" height=\"%.0f\" fill=\"%s\"><title>layer %d, "
            "step %d: max %.3g, RMS %.3g, %.3g of the limit</title></rect>\n",
            left + cell * index(steps, c.step), top + cell * index(layers, c.layer), cell - 1, cell - 1,
            colour(c).c_str(), c.layer, c.step, c.max_error(), c.rms_error(), c.limit_share());
    }
    for (const int32_t layer : layers) {
        svg += format("<text x=\"10\" y=\"%.0f\">layer %d</text>\n",
                      top + cell * index(layers, layer) + cell - 3, layer);
    }
    return svg + "</svg>\n";
}

}  // namespace mixed_kv::trace_tools
