#include "mixed-kv-bench/report_parts.h"

#include <ggml.h>

#include <algorithm>

namespace mixed_kv::tools {

double rounded(double value, int digits) { return std::stod(fmt::format("{:.{}g}", value, digits)); }

std::string dumped(const Json& json, int indent) {
    return json.dump(indent, ' ', false, Json::error_handler_t::replace);
}

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

std::string counted(std::int64_t n, const char* what) {
    return fmt::format("{} {}{}", n, what, n == 1 ? "" : "s");
}

}  // namespace mixed_kv::tools
