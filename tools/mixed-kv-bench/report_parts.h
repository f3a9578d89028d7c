#pragma once

#include <fmt/format.h>

#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "mixed-kv-bench/attention_bench.h"

// What the reports of all modes are put together from.
namespace mixed_kv::tools {

using Json = nlohmann::ordered_json;
using Row = std::vector<std::string>;

double rounded(double value, int digits);
// As text, in one line without an indent. What is no UTF-8 is replaced: generated text may be any bytes.
std::string dumped(const Json& json, int indent = -1);
Json machine_json(const BenchMachine& m);
void add_spread(Json& json, const char* name, const Spread& s);

// The host's medians and quartiles, and our speed-ups over them, by type. spread: from an entry of c.host.
template <typename Case, typename Projection = std::identity>
void add_host(Json& json, const Case& c, Projection spread = {}) {
    for (const char* name : {"host", "host_quartiles", "speedup"}) json[name] = Json::object();
    for (const auto& [type, entry] : c.host) {
        const Spread& host = std::invoke(spread, entry);
        json["host"][type] = rounded(host.median, 6);
        json["host_quartiles"][type] = {rounded(host.q1, 6), rounded(host.q3, 6)};
        json["speedup"][type] = rounded(c.speedup(type), 6);
    }
}

std::string aligned(const Row& header, const std::vector<Row>& rows, bool markdown);
std::string machine_lines(const BenchMachine& m);
std::string read_line(const BenchMachine& m);
std::string with_quartiles(const Spread& s, const char* pattern);
std::string counted(std::int64_t n, const char* what);  // "1 sequence", "2 sequences"

// Host types of all cases, in the order of the tables.
template <typename Case>
std::vector<std::string> host_types(const std::vector<Case>& cases) {
    std::vector<std::string> types;
    for (const char* type : {"f16", "q8_0", "q4_0"}) {
        if (!cases.empty() && cases.front().host.count(type) != 0) types.emplace_back(type);
    }
    return types;
}

// Index of the case that gains least over the host's type.
template <typename Case>
std::size_t smallest_speedup(const std::vector<Case>& cases, const std::string& type) {
    std::size_t smallest = 0;
    for (std::size_t i = 1; i < cases.size(); ++i) {
        if (cases[i].speedup(type) < cases[smallest].speedup(type)) smallest = i;
    }
    return smallest;
}

// {"f16": {"speedup": 1.2, "case": 3}}
template <typename Case>
Json smallest_speedup_json(const std::vector<Case>& cases) {
    Json json = Json::object();
    for (const std::string& type : host_types(cases)) {
        const std::size_t i = smallest_speedup(cases, type);
        json[type] = {{"speedup", rounded(cases[i].speedup(type), 6)}, {"case", i}};
    }
    return json;
}

// "Smallest speed-up: 1.20 x f16 at n_kv 64; 1.31 x q8_0 at n_kv 128.\n"; nothing for a single case.
template <typename Case, typename Place>
std::string smallest_speedup_line(const std::vector<Case>& cases, Place place) {
    std::string text;
    if (cases.size() < 2) return text;
    for (const std::string& type : host_types(cases)) {
        const Case& c = cases[smallest_speedup(cases, type)];
        text += fmt::format("{}{:.2f} x {} at {}", text.empty() ? "Smallest speed-up: " : "; ",
                            c.speedup(type), type, place(c));
    }
    return text.empty() ? text : text + ".\n";
}

}  // namespace mixed_kv::tools
