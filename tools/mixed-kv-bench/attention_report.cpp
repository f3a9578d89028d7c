// Decode and prompt attention.
#include <fmt/format.h>

#include <algorithm>
#include <vector>

#include "mixed-kv-bench/report.h"
#include "mixed-kv-bench/report_parts.h"

namespace mixed_kv::tools {

namespace {

// Whether the cases differ in this; what they do not differ in stands above the table.
template <typename T>
bool differs(const AttentionReport& report, T AttentionShape::*member) {
    const T first = report.cases.front().shape.*member;
    return std::any_of(report.cases.begin(), report.cases.end(),
                       [&](const AttentionCase& c) { return c.shape.*member != first; });
}

std::string shape_text(const AttentionReport& report) {
    const AttentionShape& s = report.cases.front().shape;
    std::string text = fmt::format("{} heads, {} KV heads, head_dim {}", s.n_head, s.n_head_kv, s.head_dim);
    if (!differs(report, &AttentionShape::n_q)) text += ", " + counted(s.n_q, "query row") + " per sequence";
    if (!differs(report, &AttentionShape::n_seq)) text += ", " + counted(s.n_seq, "sequence");
    return text;
}

bool is_prefill(const AttentionReport& report) { return report.mode == BenchMode::prefill; }

// "Host's caches in 3 placements, the fastest counts; the slowest took 1.02 x (f16), 4.10 x (q8_0).\n"; the
// ratios are the largest over all cases. Nothing where nothing was tried.
std::string placements_line(const AttentionReport& report) {
    std::string text;
    for (const std::string& type : host_types(report.cases)) {
        double largest = 1;
        std::size_t n = 0;
        for (const AttentionCase& c : report.cases) {
            const PlacementTimes& times = c.host.at(type).placements;
            if (times.size() < 2) return "";
            n = times.size();
            largest =
                std::max(largest, *std::max_element(times.begin(), times.end()) / times[fastest(times)]);
        }
        text += text.empty()
                    ? fmt::format("Host's caches in {} placements, the fastest counts; the slowest took ", n)
                    : std::string(", ");
        text += fmt::format("{:.2f} x ({})", largest, type);
    }
    return text.empty() ? text : text + ".\n";
}

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
        add_host(item, c, &HostTime::us);
        item["host_bandwidth_share"] = Json::object();
        item["host_gflops"] = Json::object();
        item["host_placements_us"] = Json::object();
        for (const auto& [type, host] : c.host) {
            item["host_bandwidth_share"][type] = rounded(host.bandwidth_share, 6);
            item["host_gflops"][type] = rounded(c.shape.useful_operations() / (host.us.median * 1e3), 6);
            for (const double us : host.placements)
                item["host_placements_us"][type].push_back(rounded(us, 6));
        }
        json["cases"].push_back(std::move(item));
    }
    json["smallest_speedup"] = smallest_speedup_json(report.cases);
    return json;
}

std::string to_csv(const AttentionReport& report) {
    std::string text =
        "mode,isa,threads,read_bandwidth,k,v,head_dim,n_head,n_head_kv,n_kv,n_q,n_seq,n_hot,us,us_q1,us_q3,"
        "kv_bytes,"
        "bandwidth_share,gflops,peak_gflops,peak_unit,relative_rms,scratch_bytes_per_thread";
    const std::vector<std::string> types = host_types(report.cases);
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
            text += fmt::format(",{:.6g},{:.6g}", c.host.at(type).us.median, c.speedup(type));
        }
        text += "\n";
    }
    return text;
}

std::string to_table(const AttentionReport& report, bool markdown) {
    const bool prefill = is_prefill(report);
    const bool rows_differ = differs(report, &AttentionShape::n_q);
    const bool sequences_differ = differs(report, &AttentionShape::n_seq);
    Row header = {"K", "V", prefill ? "depth" : "n_kv"};
    if (rows_differ) header.emplace_back("n_q");
    if (sequences_differ) header.emplace_back("n_seq");
    header.insert(header.end(), {prefill ? "ms" : "us", prefill ? "GFLOP/s" : "MB"});
    if (!prefill) header.emplace_back("of bandwidth");
    header.insert(header.end(), {"of peak", "rel. RMS"});
    const std::vector<std::string> types = host_types(report.cases);
    for (const std::string& type : types) header.push_back("host " + type);
    for (const std::string& type : types) header.push_back("x " + type);
    std::vector<Row> rows;
    const double unit = prefill ? 1e-3 : 1.0;
    const char* pattern = prefill ? "{:.2f}" : "{:.0f}";
    for (const AttentionCase& c : report.cases) {
        const Spread scaled = {c.us.median * unit, c.us.q1 * unit, c.us.q3 * unit, c.us.n};
        Row row = {c.k, c.v, std::to_string(prefill ? c.shape.n_kv - c.shape.n_q : c.shape.n_kv)};
        if (rows_differ) row.push_back(std::to_string(c.shape.n_q));
        if (sequences_differ) row.push_back(std::to_string(c.shape.n_seq));
        row.push_back(with_quartiles(scaled, pattern));
        row.push_back(prefill ? fmt::format("{:.1f}", c.gflops)
                              : fmt::format("{:.1f}", double(c.kv_bytes) * 1e-6));
        if (!prefill) row.push_back(fmt::format("{:.1f} %", 100 * c.bandwidth_share));
        row.push_back(fmt::format("{:.1f} %", 100 * c.gflops / c.peak_gflops));
        row.push_back(fmt::format("{:.1e}", c.relative_rms));
        for (const std::string& type : types)
            row.push_back(fmt::format(fmt::runtime(pattern), c.host.at(type).us.median * unit));
        for (const std::string& type : types) row.push_back(fmt::format("{:.2f}", c.speedup(type)));
        rows.push_back(std::move(row));
    }
    std::string text = machine_lines(report.machine) + shape_text(report) + "; medians with quartiles\n";
    if (markdown) text += "\n";
    text += aligned(header, rows, markdown);
    if (markdown) text += "\n";
    std::size_t scratch = 0;
    for (const AttentionCase& c : report.cases) scratch = std::max(scratch, c.scratch_bytes_per_thread);
    text += "Roofline: " + read_line(report.machine);
    for (const auto& [name, peak] : report.peaks)
        text += fmt::format("; peak of {}: {:.0f} GFLOP/s", name, peak);
    text += fmt::format(". Scratch per thread: {} bytes.\n", scratch);
    text += placements_line(report);
    const std::string smallest = smallest_speedup_line(report.cases, [&](const AttentionCase& c) {
        std::string place = prefill ? fmt::format("depth {}", c.shape.n_kv - c.shape.n_q)
                                    : fmt::format("n_kv {}", c.shape.n_kv);
        if (rows_differ) place += fmt::format(", n_q {}", c.shape.n_q);
        if (sequences_differ) place += fmt::format(", n_seq {}", c.shape.n_seq);
        return place + fmt::format(", {}/{}", c.k, c.v);
    });
    if (markdown && !smallest.empty()) text += "\n";
    text += smallest;
    return text;
}

}  // namespace mixed_kv::tools
