// kqv-trace-diff: compares two traces tensor by tensor. Exit status: 0 everything within tolerance, 1
// something differs or is missing, 2 a file or the command line is refused.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>

#include "common/command_line.h"
#include "common/run_tool.h"
#include "kqv-tensor-reader/trace_values.h"
#include "kqv-trace-diff/compare.h"
#include "trace/trace_reader.h"

namespace mixed_kv::trace_tools {

namespace {

constexpr int kExitEqual = 0, kExitDifferent = 1, kExitRefused = 2;

struct Arguments {
    std::string a, b;
    double tolerance = 1e-4;
    std::optional<int32_t> step, layer;
    bool all = false, json = false;
};

// False: --help or --version was asked for.
bool parse(int argc, char** argv, Arguments& arguments) {
    tools::CommandLine command("kqv-trace-diff", "Compares trace B with trace A, tensor by tensor.");
    command.option("A", arguments.a, "Trace to measure against").required().value_name("FILE");
    command.option("B", arguments.b, "Trace to compare with it").required().value_name("FILE");
    command.option("--tol", arguments.tolerance, "Largest difference over the largest |value| of A");
    command.option("--step", arguments.step, "This step only");
    command.option("--layer", arguments.layer, "This layer only");
    command.flag("--all", arguments.all, "List every tensor, not only those out of tolerance");
    command.flag("--json", arguments.json, "Print one JSON object instead of text");
    if (!command.parse(argc, argv)) return false;
    if (!std::isfinite(arguments.tolerance) || arguments.tolerance < 0) {
        throw tools::UsageError("--tol must be a number of at least 0");
    }
    return true;
}

struct Line {
    trace::RecordId id;
    TensorDifference difference;
};

// The worst of every tensor kind over all records.
struct Summary {
    int64_t n = 0, n_out = 0;
    double max_absolute = 0, max_relative = 0, squares = 0, min_cosine = 1;
};

struct Result {
    std::vector<Line> lines;
    std::map<std::string, Summary> kinds;
    std::vector<std::string> missing;  // records that only one of the files has
    size_t n_records = 0;
    bool within = true;
};

double worse(double a, double b) { return std::isnan(a) ? a : (b <= a ? a : b); }

Result compare(const trace::TraceReader& a, const trace::TraceReader& b, const Arguments& arguments) {
    const auto before = [](trace::RecordId x, trace::RecordId y) {
        return std::pair(x.step, x.layer) < std::pair(y.step, y.layer);
    };
    const auto chosen = [&](trace::RecordId id) {
        return arguments.step.value_or(id.step) == id.step && arguments.layer.value_or(id.layer) == id.layer;
    };
    const auto has = [&](const trace::TraceReader& reader, trace::RecordId id) {
        return std::binary_search(reader.records().begin(), reader.records().end(), id, before);
    };
    Result result;
    for (const trace::RecordId id : b.records()) {
        if (chosen(id) && !has(a, id))
            result.missing.push_back(place_text(id.layer, id.step) + ": only in B");
    }
    for (const trace::RecordId id : a.records()) {
        if (!chosen(id)) continue;
        if (!has(b, id)) {
            result.missing.push_back(place_text(id.layer, id.step) + ": only in A");
            continue;
        }
        ++result.n_records;
        for (TensorDifference& difference : compare_records(a.load(id), b.load(id))) {
            const bool within = difference.within(arguments.tolerance);
            result.within = result.within && within;
            if (difference.mismatch.empty()) {
                Summary& kind = result.kinds[difference.tensor];
                kind.n += difference.n;
                kind.n_out += within ? 0 : 1;
                kind.max_absolute = worse(kind.max_absolute, difference.max_absolute);
                kind.max_relative = worse(kind.max_relative, difference.max_relative);
                kind.squares += difference.rmse * difference.rmse * double(difference.n);
                kind.min_cosine = std::min(kind.min_cosine, difference.cosine);
            }
            result.lines.push_back({id, std::move(difference)});
        }
    }
    result.within = result.within && result.missing.empty() && result.n_records > 0;
    return result;
}

void print_text(const Result& result, const Arguments& arguments) {
    for (const std::string& line : result.missing) std::printf("%s\n", line.c_str());
    std::set<std::string> noted;  // how things are stored is the same in every step
    for (const auto& [id, d] : result.lines) {
        if (d.note && !arguments.all && !noted.insert(d.tensor + d.mismatch).second) continue;
        if (!arguments.all && !d.note && d.within(arguments.tolerance)) continue;
        const std::string place = place_text(id.layer, id.step);
        if (!d.mismatch.empty()) {
            std::printf("%s %s, %s: %s\n", d.note ? "note" : "DIFF", place.c_str(), d.tensor.c_str(),
                        d.mismatch.c_str());
        } else {
            std::printf("%s %s, %s: max absolute %.3g, relative %.3g, RMSE %.3g, cosine %.9f\n",
                        d.within(arguments.tolerance) ? "ok  " : "DIFF", place.c_str(), d.tensor.c_str(),
                        d.max_absolute, d.max_relative, d.rmse, d.cosine);
        }
    }
    std::printf("%-8s %12s %12s %12s %12s %12s %8s\n", "tensor", "values", "absolute", "relative", "RMSE",
                "cosine", "out");
    for (const auto& [name, kind] : result.kinds) {
        std::printf("%-8s %12lld %12.4g %12.4g %12.4g %12.9f %8lld\n", name.c_str(),
                    static_cast<long long>(kind.n), kind.max_absolute, kind.max_relative,
                    std::sqrt(kind.squares / double(std::max<int64_t>(1, kind.n))), kind.min_cosine,
                    static_cast<long long>(kind.n_out));
    }
    std::printf("%s: %zu records compared, tolerance %g\n", result.within ? "EQUAL" : "DIFFERENT",
                result.n_records, arguments.tolerance);
}

void print_json(const Result& result, const Arguments& arguments) {
    const auto number = [](double x) {
        return std::isfinite(x) ? nlohmann::ordered_json(x) : nlohmann::ordered_json();
    };
    nlohmann::ordered_json json = {{"pass", result.within},
                                   {"records", result.n_records},
                                   {"tolerance", arguments.tolerance},
                                   {"missing", result.missing},
                                   {"tensors", nlohmann::ordered_json::array()}};
    for (const auto& [id, d] : result.lines) {
        nlohmann::ordered_json line = {{"layer", id.layer},
                                       {"step", id.step},
                                       {"tensor", d.tensor},
                                       {"pass", d.within(arguments.tolerance)}};
        if (!d.mismatch.empty()) {
            line["mismatch"] = d.mismatch;
        } else {
            line["values"] = d.n;
            line["max_absolute"] = number(d.max_absolute);
            line["max_relative"] = number(d.max_relative);
            line["rmse"] = number(d.rmse);
            line["cosine"] = number(d.cosine);
        }
        json["tensors"].push_back(std::move(line));
    }
    std::printf("%s\n", json.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace).c_str());
}

int run(int argc, char** argv) {
    Arguments arguments;
    if (!parse(argc, argv, arguments)) return kExitEqual;
    const Result result =
        compare(trace::TraceReader(arguments.a), trace::TraceReader(arguments.b), arguments);
    if (arguments.json) {
        print_json(result, arguments);
    } else {
        print_text(result, arguments);
    }
    return result.within ? kExitEqual : kExitDifferent;
}

}  // namespace

}  // namespace mixed_kv::trace_tools

int main(int argc, char** argv) {
    using namespace mixed_kv::trace_tools;
    return mixed_kv::tools::run_tool(
        "kqv-trace-diff", [&] { return run(argc, argv); }, kExitRefused);
}
