#include "mixed-kv-bench/report.h"

#include <fmt/format.h>
#include <ggml.h>

#include <algorithm>
#include <map>
#include <vector>

namespace mixed_kv::tools {

namespace {

using Json = nlohmann::ordered_json;
using Row = std::vector<std::string>;

double rounded(double value, int digits) { return std::stod(fmt::format("{:.{}g}", value, digits)); }

Json machine_json(const BenchMachine& m) {
    return {{"cpu", m.cpu},
            {"threads", m.n_threads},
            {"isa", m.isa},
            {"host_library", m.host_library},
            {"ggml", std::string(ggml_version()) + " (" + ggml_commit() + ")"},
            {"read_bandwidth", rounded(m.read_bandwidth, 6)},
            {"read_pattern", m.read_pattern},
            {"read_samples", m.read_samples},
            {"last_level_cache_bytes", m.last_level_cache_bytes},
            {"rotation_bytes", m.rotation_bytes},
            {"reads_memory", m.reads_memory}};
}

void add_spread(Json& json, const char* name, const Spread& s) {
    json[name] = rounded(s.median, 6);
    json[std::string(name) + "_quartiles"] = {rounded(s.q1, 6), rounded(s.q3, 6)};
    json["samples"] = s.n;
}

std::string aligned(const Row& header, const std::vector<Row>& rows, bool markdown) {
    std::vector<std::size_t> widths(header.size());
    const auto measure = [&](const Row& row) {
        for (std::size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
    };
    measure(header);
    for (const Row& row : rows) measure(row);
    const auto line = [&](const Row& row) {
        std::string text = markdown ? "|" : "";
        for (std::size_t i = 0; i < row.size(); ++i)
            text += fmt::format(fmt::runtime(markdown ? " {:>{}} |" : "{:>{}}  "), row[i], widths[i]);
        while (!text.empty() && text.back() == ' ') text.pop_back();
        return text + "\n";
    };
    std::string text = line(header);
    if (markdown) {
        text += "|";
        for (const std::size_t width : widths) text += " " + std::string(width - 1, '-') + ": |";
        text += "\n";
    }
    for (const Row& row : rows) text += line(row);
    return text;
}

std::string machine_lines(const BenchMachine& m) {
    std::string text = fmt::format("{}; {} thread{}; kernels: {}; llama.cpp's ggml {}{}\n", m.cpu,
                                   m.n_threads, m.n_threads == 1 ? "" : "s", m.isa, ggml_version(),
                                   m.host_library.empty() ? "" : " with " + m.host_library);
    if (!m.reads_memory) {
        text += fmt::format("rotating through {} MiB only: caches may have served reads\n",
                            m.rotation_bytes >> 20);
    }
    return text;
}

std::string read_line(const BenchMachine& m) {
    return fmt::format("read bandwidth {:.2f} GB/s ({}; median of {} passes)", m.read_bandwidth * 1e-9,
                       m.read_pattern, m.read_samples);
}

std::string with_quartiles(const Spread& s, const char* pattern) {
    return fmt::format(fmt::runtime(std::string(pattern) + " ({}..{})"), s.median,
                       fmt::format(fmt::runtime(pattern), s.q1), fmt::format(fmt::runtime(pattern), s.q3));
}

std::string shape_text(const AttentionReport& report) {
    const AttentionShape& s = report.cases.front().shape;
    return fmt::format("{} heads, {} KV heads, head_dim {}, {} query row{} per sequence, {} sequence{}",
                       s.n_head, s.n_head_kv, s.head_dim, s.n_q, s.n_q == 1 ? "" : "s", s.n_seq,
                       s.n_seq == 1 ? "" : "s");
}

std::vector<std::string> host_types(const AttentionReport& report) {
    std::vector<std::string> types;
    for (const char* type : {"f16", "q8_0", "q4_0"}) {
        if (!report.cases.empty() && report.cases.front().host.count(type) != 0) types.emplace_back(type);
    }
    return types;
}

std::vector<std::string> host_types(const ModelReport& report) {
    std::vector<std::string> types;
    for (const char* type : {"f16", "q8_0", "q4_0"}) {
        if (!report.cases.empty() && report.cases.front().host.count(type) != 0) types.emplace_back(type);
    }
    return types;
}

bool is_prefill(const AttentionReport& report) { return report.mode == BenchMode::prefill; }

}  // namespace

Json to_json(const AttentionReport& report) {
    Json json = {{"mode", is_prefill(report) ? "prefill" : "attention"}};
    json.update(machine_json(report.machine));
    json["cases"] = Json::array();
    for (const AttentionCase& c : report.cases) {
        Json item = {{"k", c.k},
                     {"v", c.v},
                     {"head_dim", c.shape.head_dim},
                     {"n_head", c.shape.n_head},
                     {"n_head_kv", c.shape.n_head_kv},
                     {"n_kv", c.shape.n_kv},
                     {"n_q", c.shape.n_q},
                     {"n_seq", c.shape.n_seq},
                     {"n_hot", c.shape.n_hot}};
        if (is_prefill(report)) item["depth"] = c.shape.n_kv - c.shape.n_q;
        add_spread(item, "us", c.us);
        item["kv_bytes"] = c.kv_bytes;
        item["bandwidth_share"] = rounded(c.bandwidth_share, 6);
        item["gflops"] = rounded(c.gflops, 6);
        item["peak_gflops"] = rounded(c.peak_gflops, 6);
        item["peak_unit"] = c.unit;
        item["relative_rms"] = rounded(c.relative_rms, 4);
        item["scratch_bytes_per_thread"] = c.scratch_bytes_per_thread;
        item["host"] = Json::object();
        item["host_quartiles"] = Json::object();
        item["host_bandwidth_share"] = Json::object();
        item["host_gflops"] = Json::object();
        item["speedup"] = Json::object();
        for (const std::string& type : host_types(report)) {
            const HostTime& host = c.host.at(type);
            item["host"][type] = rounded(host.us.median, 6);
            item["host_quartiles"][type] = {rounded(host.us.q1, 6), rounded(host.us.q3, 6)};
            item["host_bandwidth_share"][type] = rounded(host.bandwidth_share, 6);
            item["host_gflops"][type] = rounded(c.shape.useful_operations() / (host.us.median * 1e3), 6);
            item["speedup"][type] = rounded(host.us.median / c.us.median, 6);
        }
        json["cases"].push_back(std::move(item));
    }
    return json;
}

Json to_json(const ModelReport& report) {
    Json json = {{"mode", "model"},
                 {"model", report.model},
                 {"description", report.description},
                 {"weight_bytes", report.weight_bytes},
                 {"n_prompt", report.n_prompt},
                 {"window", report.window},
                 {"sinks", report.sinks}};
    json.update(machine_json(report.machine));
    json["cases"] = Json::array();
    for (const ModelCase& c : report.cases) {
        Json item = {{"depth", c.depth}, {"k", c.k}, {"v", c.v}};
        add_spread(item, "tokens_per_second", c.tokens_per_second);
        item["kv_bytes"] = c.kv_bytes;
        if (report.n_prompt == 1) item["tokens_per_second_ceiling"] = rounded(c.tokens_per_second_ceiling, 6);
        item["host"] = Json::object();
        item["host_quartiles"] = Json::object();
        item["speedup"] = Json::object();
        for (const std::string& type : host_types(report)) {
            const Spread& host = c.host.at(type);
            item["host"][type] = rounded(host.median, 6);
            item["host_quartiles"][type] = {rounded(host.q1, 6), rounded(host.q3, 6)};
            item["speedup"][type] = rounded(c.tokens_per_second.median / host.median, 6);
        }
        json["cases"].push_back(std::move(item));
    }
    return json;
}

std::string to_csv(const AttentionReport& report) {
    std::string text =
        "mode,isa,threads,read_bandwidth,k,v,head_dim,n_head,n_head_kv,n_kv,n_q,n_seq,n_hot,us,us_q1,us_q3,"
        "kv_bytes,"
        "bandwidth_share,gflops,peak_gflops,peak_unit,relative_rms,scratch_bytes_per_thread";
    const std::vector<std::string> types = host_types(report);
    for (const std::string& type : types) text += fmt::format(",host_{}_us,speedup_{}", type, type);
    text += "\n";
    for (const AttentionCase& c : report.cases) {
        const AttentionShape& s = c.shape;
        text += fmt::format(
            "{},{},{},{:.6g},{},{},{},{},{},{},{},{},{},{:.6g},{:.6g},{:.6g},{},{:.6g},{:.6g},{:.6g},{},{:."
            "4g},{}",
            is_prefill(report) ? "prefill" : "attention", report.machine.isa, report.machine.n_threads,
            report.machine.read_bandwidth, c.k, c.v, s.head_dim, s.n_head, s.n_head_kv, s.n_kv, s.n_q,
            s.n_seq, s.n_hot, c.us.median, c.us.q1, c.us.q3, c.kv_bytes, c.bandwidth_share, c.gflops,
            c.peak_gflops, c.unit, c.relative_rms, c.scratch_bytes_per_thread);
        for (const std::string& type : types) {
            const double us = c.host.at(type).us.median;
            text += fmt::format(",{:.6g},{:.6g}", us, us / c.us.median);
        }
        text += "\n";
    }
    return text;
}

std::string to_csv(const ModelReport& report) {
    std::string text =
        "mode,isa,threads,read_bandwidth,n_prompt,depth,k,v,tokens_per_second,q1,q3,kv_bytes,ceiling";
    const std::vector<std::string> types = host_types(report);
    for (const std::string& type : types)
        text += fmt::format(",host_{}_tokens_per_second,speedup_{}", type, type);
    text += "\n";
    for (const ModelCase& c : report.cases) {
        text += fmt::format("model,{},{},{:.6g},{},{},{},{},{:.6g},{:.6g},{:.6g},{},", report.machine.isa,
                            report.machine.n_threads, report.machine.read_bandwidth, report.n_prompt, c.depth,
                            c.k, c.v, c.tokens_per_second.median, c.tokens_per_second.q1,
                            c.tokens_per_second.q3, c.kv_bytes);
        if (report.n_prompt == 1) text += fmt::format("{:.6g}", c.tokens_per_second_ceiling);
        for (const std::string& type : types) {
            const double host = c.host.at(type).median;
            text += fmt::format(",{:.6g},{:.6g}", host, c.tokens_per_second.median / host);
        }
        text += "\n";
    }
    return text;
}

std::string to_table(const AttentionReport& report, bool markdown) {
    const bool prefill = is_prefill(report);
    Row header = {"K", "V", prefill ? "depth" : "n_kv", prefill ? "ms" : "us", prefill ? "GFLOP/s" : "MB"};
    if (!prefill) header.emplace_back("of bandwidth");
    header.insert(header.end(), {"of peak", "rel. RMS"});
    const std::vector<std::string> types = host_types(report);
    for (const std::string& type : types) header.push_back("host " + type);
    for (const std::string& type : types) header.push_back("x " + type);
    std::vector<Row> rows;
    const double unit = prefill ? 1e-3 : 1.0;
    const char* pattern = prefill ? "{:.2f}" : "{:.0f}";
    for (const AttentionCase& c : report.cases) {
        const Spread scaled = {c.us.median * unit, c.us.q1 * unit, c.us.q3 * unit, c.us.n};
        Row row = {c.k, c.v, std::to_string(prefill ? c.shape.n_kv - c.shape.n_q : c.shape.n_kv),
                   with_quartiles(scaled, pattern)};
        row.push_back(prefill ? fmt::format("{:.1f}", c.gflops)
                              : fmt::format("{:.1f}", double(c.kv_bytes) * 1e-6));
        if (!prefill) row.push_back(fmt::format("{:.1f} %", 100 * c.bandwidth_share));
        row.push_back(fmt::format("{:.1f} %", 100 * c.gflops / c.peak_gflops));
        row.push_back(fmt::format("{:.1e}", c.relative_rms));
        for (const std::string& type : types)
            row.push_back(fmt::format(fmt::runtime(pattern), c.host.at(type).us.median * unit));
        for (const std::string& type : types)
            row.push_back(fmt::format("{:.2f}", c.host.at(type).us.median / c.us.median));
        rows.push_back(std::move(row));
    }
    std::string text = machine_lines(report.machine) + shape_text(report) + "; medians with quartiles\n";
    if (markdown) text += "\n";
    text += aligned(header, rows, markdown);
    if (markdown) text += "\n";
    std::map<std::string, double> peaks;
    std::size_t scratch = 0;
    for (const AttentionCase& c : report.cases) {
        peaks[c.unit] = c.peak_gflops;
        scratch = std::max(scratch, c.scratch_bytes_per_thread);
    }
    text += "Roofline: " + read_line(report.machine);
    for (const auto& [name, peak] : peaks) text += fmt::format("; peak of {}: {:.0f} GFLOP/s", name, peak);
    text += fmt::format(". Scratch per thread: {} bytes.\n", scratch);
    return text;
}

std::string to_table(const ModelReport& report, bool markdown) {
    Row header = {"depth", "K", "V", "tokens/s", "KV MB"};
    const bool generates = report.n_prompt == 1;
    if (generates) header.emplace_back("of ceiling");
    const std::vector<std::string> types = host_types(report);
    for (const std::string& type : types) header.push_back("host " + type);
    for (const std::string& type : types) header.push_back("x " + type);
    std::vector<Row> rows;
    for (const ModelCase& c : report.cases) {
        Row row = {std::to_string(c.depth), c.k, c.v, with_quartiles(c.tokens_per_second, "{:.2f}"),
                   fmt::format("{:.1f}", double(c.kv_bytes) * 1e-6)};
        if (generates) {
            row.push_back(
                fmt::format("{:.0f} %", 100 * c.tokens_per_second.median / c.tokens_per_second_ceiling));
        }
        for (const std::string& type : types) row.push_back(fmt::format("{:.2f}", c.host.at(type).median));
        for (const std::string& type : types)
            row.push_back(fmt::format("{:.2f}", c.tokens_per_second.median / c.host.at(type).median));
        rows.push_back(std::move(row));
    }
    std::string text = machine_lines(report.machine);
    text += fmt::format(
        "{} ({:.0f} MB of weights); window {}, sinks {}; {}tokens per second, medians with quartiles\n",
        report.description, double(report.weight_bytes) * 1e-6, report.window, report.sinks,
        generates ? "" : fmt::format("prompts of {} tokens; ", report.n_prompt));
    if (markdown) text += "\n";
    text += aligned(header, rows, markdown);
    if (markdown) text += "\n";
    text += generates
                ? fmt::format("Roofline: {}; the ceiling reads all weights and our K and V once per token.\n",
                              read_line(report.machine))
                : fmt::format("{}; prompts are bound by arithmetic.\n", read_line(report.machine));
    return text;
}

}  // namespace mixed_kv::tools
