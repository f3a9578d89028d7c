// Whole prompts, ubatch by ubatch.
#include <fmt/format.h>

#include <algorithm>

#include "mixed-kv-bench/report.h"
#include "mixed-kv-bench/report_parts.h"

namespace mixed_kv::tools {

namespace {

Json reader_json(const PromptReader& reader) {
    Json json;
    add_spread(json, "prompt_seconds", reader.prompt_seconds);
    add_spread(json, "generation_tokens_per_second", reader.generation_tokens_per_second);
    json.erase("samples");
    json["text"] = reader.text;
    return json;
}

// How many ubatches are slower than with the host's cache.
std::string verdict(const PromptReport& report, const std::string& type) {
    const auto slower = std::count_if(report.ubatches.begin(), report.ubatches.end(),
                                      [&](const PromptUbatch& u) { return u.speedup(type) < 1; });
    if (slower == 0) return fmt::format("no ubatch is slower than with the host's {}", type);
    return fmt::format("{} slower than with the host's {}",
                       slower == 1 ? "1 ubatch is" : fmt::format("{} ubatches are", slower), type);
}

}  // namespace

Json to_json(const PromptReport& report) {
    Json json = {{"mode", "prompt"},
                 {"model", report.model},
                 {"description", report.description},
                 {"weight_bytes", report.weight_bytes},
                 {"k", report.k},
                 {"v", report.v},
                 {"n_prompt", report.n_prompt},
                 {"n_ubatch", report.n_ubatch},
                 {"n_gen", report.n_gen},
                 {"runs", report.n_runs},
                 {"window", report.window},
                 {"sinks", report.sinks}};
    const Json machine = machine_json(report.machine);
    for (const char* key : {"cpu", "threads", "isa", "ggml"}) json[key] = machine.at(key);
    json["ubatches"] = Json::array();
    for (const PromptUbatch& u : report.ubatches) {
        Json item = {{"depth", u.depth}, {"n_tokens", u.n_tokens}};
        add_spread(item, "seconds", u.seconds);
        add_host(item, u);
        json["ubatches"].push_back(std::move(item));
    }
    json["smallest_speedup"] = smallest_speedup_json(report.ubatches);
    json["ours"] = reader_json(report.ours);
    json["host"] = Json::object();
    for (const auto& [type, host] : report.host) json["host"][type] = reader_json(host);
    json["kv_bytes"] = report.kv_bytes;
    json["peak_resident_bytes"] = report.peak_resident_bytes;
    return json;
}

std::string to_csv(const PromptReport& report) {
    std::string text = "mode,isa,threads,k,v,n_prompt,n_ubatch,depth,n_tokens,seconds,q1,q3";
    const std::vector<std::string> types = host_types(report.ubatches);
    for (const std::string& type : types) text += fmt::format(",host_{}_seconds,speedup_{}", type, type);
    text += ",runs,window,sinks\n";
    for (const PromptUbatch& u : report.ubatches) {
        text += fmt::format("prompt,{},{},{},{},{},{},{},{},{:.6g},{:.6g},{:.6g}", report.machine.isa,
                            report.machine.n_threads, report.k, report.v, report.n_prompt, report.n_ubatch,
                            u.depth, u.n_tokens, u.seconds.median, u.seconds.q1, u.seconds.q3);
        for (const std::string& type : types)
            text += fmt::format(",{:.6g},{:.6g}", u.host.at(type).median, u.speedup(type));
        text += fmt::format(",{},{},{}\n", report.n_runs, report.window, report.sinks);
    }
    return text;
}

std::string to_table(const PromptReport& report, bool markdown) {
    const std::vector<std::string> types = host_types(report.ubatches);
    Row header = {"depth", "tokens", "ms"};
    for (const std::string& type : types) header.push_back("host " + type);
    for (const std::string& type : types) header.push_back("x " + type);
    std::vector<Row> rows;
    for (const PromptUbatch& u : report.ubatches) {
        const Spread ms = {u.seconds.median * 1e3, u.seconds.q1 * 1e3, u.seconds.q3 * 1e3, u.seconds.n};
        Row row = {std::to_string(u.depth), std::to_string(u.n_tokens), with_quartiles(ms, "{:.1f}")};
        for (const std::string& type : types)
            row.push_back(fmt::format("{:.1f}", u.host.at(type).median * 1e3));
        for (const std::string& type : types) row.push_back(fmt::format("{:.2f}", u.speedup(type)));
        rows.push_back(std::move(row));
    }
    std::string text = machine_lines(report.machine);
    text += fmt::format(
        "{} ({:.0f} MB of weights); {}/{}, window {}, sinks {}; {} of {} tokens in ubatches of "
        "{}, medians with quartiles\n",
        report.description, double(report.weight_bytes) * 1e-6, report.k, report.v, report.window,
        report.sinks, counted(report.n_runs, "run"), report.n_prompt, report.n_ubatch);
    if (markdown) text += "\n";
    text += aligned(header, rows, markdown);
    if (markdown) text += "\n";
    std::vector<std::string> lines;
    const std::string smallest = smallest_speedup_line(
        report.ubatches, [](const PromptUbatch& u) { return fmt::format("depth {}", u.depth); });
    if (!smallest.empty()) lines.push_back(smallest);
    for (const std::string& type : types) {
        const PromptReader& host = report.host.at(type);
        lines.push_back(fmt::format("Whole prompt: {:.2f} s, {:.2f} s with the host's {}: {:.2f} x; {}.\n",
                                    report.ours.prompt_seconds.median, host.prompt_seconds.median, type,
                                    host.prompt_seconds.median / report.ours.prompt_seconds.median,
                                    verdict(report, type)));
    }
    if (types.empty())
        lines.push_back(fmt::format("Whole prompt: {:.2f} s.\n", report.ours.prompt_seconds.median));
    if (report.n_gen > 0) {
        const auto said = [&](const std::string& name, const PromptReader& reader) {
            lines.push_back(fmt::format("Text after it, {}, {:.2f} tokens/s: {}\n", name,
                                        reader.generation_tokens_per_second.median, dumped(reader.text)));
        };
        said("ours", report.ours);
        for (const std::string& type : types) said("host " + type, report.host.at(type));
    }
    lines.push_back(fmt::format("Our cache: {:.1f} MB; peak of the process, with all caches: {:.0f} MB.\n",
                                double(report.kv_bytes) * 1e-6, double(report.peak_resident_bytes) * 1e-6));
    for (std::size_t i = 0; i < lines.size(); ++i) text += (markdown && i > 0 ? "\n" : "") + lines[i];
    return text;
}

}  // namespace mixed_kv::tools
