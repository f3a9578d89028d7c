// Tokens per second of whole models.
#include <fmt/format.h>

#include <algorithm>

#include "mixed-kv-bench/report.h"
#include "mixed-kv-bench/report_parts.h"

namespace mixed_kv::tools {

namespace {

bool is_parallel(const ModelReport& report) {
    return std::any_of(report.cases.begin(), report.cases.end(),
                       [](const ModelCase& c) { return c.n_parallel > 1; });
}

}  // namespace

Json to_json(const ModelReport& report) {
    Json json = {{"mode", "model"},
                 {"model", report.model},
                 {"description", report.description},
                 {"weight_bytes", report.weight_bytes},
                 {"n_prompt", report.n_prompt},
                 {"kv_unified", report.kv_unified},
                 {"window", report.window},
                 {"sinks", report.sinks}};
    json.update(machine_json(report.machine));
    json["cases"] = Json::array();
    for (const ModelCase& c : report.cases) {
        Json item = {{"depth", c.depth}, {"n_parallel", c.n_parallel}, {"k", c.k}, {"v", c.v}};
        add_spread(item, "tokens_per_second", c.tokens_per_second);
        item["kv_bytes"] = c.kv_bytes;
        if (report.n_prompt == 1) {
            item["tokens_per_second_ceiling"] = rounded(c.tokens_per_second_ceiling, 6);
            item["fits_cache"] = c.fits_cache;
        }
        add_host(item, c);
        json["cases"].push_back(std::move(item));
    }
    json["smallest_speedup"] = smallest_speedup_json(report.cases);
    return json;
}

std::string to_csv(const ModelReport& report) {
    std::string text =
        "mode,isa,threads,read_bandwidth,n_prompt,depth,k,v,tokens_per_second,q1,q3,kv_bytes,ceiling";
    const std::vector<std::string> types = host_types(report.cases);
    for (const std::string& type : types)
        text += fmt::format(",host_{}_tokens_per_second,speedup_{}", type, type);
    text += ",n_parallel,kv_unified,window,sinks\n";
    for (const ModelCase& c : report.cases) {
        text += fmt::format("model,{},{},{:.6g},{},{},{},{},{:.6g},{:.6g},{:.6g},{},", report.machine.isa,
                            report.machine.n_threads, report.machine.read_bandwidth, report.n_prompt, c.depth,
                            c.k, c.v, c.tokens_per_second.median, c.tokens_per_second.q1,
                            c.tokens_per_second.q3, c.kv_bytes);
        if (report.n_prompt == 1) text += fmt::format("{:.6g}", c.tokens_per_second_ceiling);
        for (const std::string& type : types) {
            text += fmt::format(",{:.6g},{:.6g}", c.host.at(type).median, c.speedup(type));
        }
        text += fmt::format(",{},{},{},{}\n", c.n_parallel, report.kv_unified, report.window, report.sinks);
    }
    return text;
}

std::string to_table(const ModelReport& report, bool markdown) {
    const bool parallel = is_parallel(report);
    Row header = {"depth"};
    if (parallel) header.emplace_back("parallel");
    header.insert(header.end(), {"K", "V", "tokens/s", "KV MB"});
    const bool generates = report.n_prompt == 1;
    if (generates) header.emplace_back("of ceiling");
    const std::vector<std::string> types = host_types(report.cases);
    for (const std::string& type : types) header.push_back("host " + type);
    for (const std::string& type : types) header.push_back("x " + type);
    std::vector<Row> rows;
    for (const ModelCase& c : report.cases) {
        Row row = {std::to_string(c.depth)};
        if (parallel) row.push_back(std::to_string(c.n_parallel));
        row.insert(row.end(), {c.k, c.v, with_quartiles(c.tokens_per_second, "{:.2f}"),
                               fmt::format("{:.1f}", double(c.kv_bytes) * 1e-6)});
        if (generates) {
            row.push_back(c.fits_cache ? "fits a cache"
                                       : fmt::format("{:.0f} %", 100 * c.tokens_per_second.median /
                                                                     c.tokens_per_second_ceiling));
        }
        for (const std::string& type : types) row.push_back(fmt::format("{:.2f}", c.host.at(type).median));
        for (const std::string& type : types) row.push_back(fmt::format("{:.2f}", c.speedup(type)));
        rows.push_back(std::move(row));
    }
    std::string text = machine_lines(report.machine);
    text += fmt::format(
        "{} ({:.0f} MB of weights); window {}, sinks {}; {}{}tokens per second, medians with quartiles\n",
        report.description, double(report.weight_bytes) * 1e-6, report.window, report.sinks,
        generates ? "" : fmt::format("prompts of {} tokens; ", report.n_prompt),
        !parallel           ? ""
        : report.kv_unified ? "sequences in one stream; "
                            : "a stream for each sequence; ");
    if (markdown) text += "\n";
    text += aligned(header, rows, markdown);
    if (markdown) text += "\n";
    text += generates
                ? fmt::format("Roofline: {}; the ceiling reads all weights and our K and V once per {}.\n",
                              read_line(report.machine), parallel ? "step" : "token")
                : fmt::format("{}; prompts are bound by arithmetic.\n", read_line(report.machine));
    const std::string smallest = smallest_speedup_line(report.cases, [&](const ModelCase& c) {
        return fmt::format("depth {}", c.depth) +
               (parallel ? ", " + counted(c.n_parallel, "sequence") : std::string());
    });
    if (markdown && !smallest.empty()) text += "\n";
    return text + smallest;
}

}  // namespace mixed_kv::tools
