// kqv-tensor-reader: opens a trace of attention (kqv-trace-monitor), recomputes every recorded op with
// libtorch and in double, and says how far off the recorded outputs are. Exit status: 0 all within tolerance,
// 1 some not, 2 the file or the command line is refused.

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>
#include <optional>
#include <set>

#include "common/command_line.h"
#include "common/run_tool.h"
#include "kqv-tensor-reader/check.h"
#include "kqv-tensor-reader/html/trace_page.h"
#include "kqv-tensor-reader/listing.h"
#include "kqv-tensor-reader/npy.h"
#include "kqv-tensor-reader/report.h"
#include "mixed_kv/error.h"
#include "trace/output_file.h"
#include "trace/trace_reader.h"

namespace mixed_kv::trace_tools {

namespace {

// Lines of the tables without --all, and of failures: a screen with what stands around them.
constexpr size_t kScreenRows = 10, kScreenLayers = 6, kScreenFailures = 5;

constexpr int kExitPass = 0, kExitFail = 1, kExitRefused = 2;

struct Arguments {
    std::string input, csv, picture, npy, html, against;
    std::optional<int> html_megabytes;
    CheckOptions check;
    std::optional<int32_t> step, layer;
    bool shapes = false, json = false, list_only = false, summary = false, quiet = false, all = false;
};

// A file that cannot be written is no fault of the trace's.
void write_file(const std::string& path, const std::string& content) {
    try {
        trace::write_output_file(path, content);
    } catch (const Error& error) {
        throw tools::OutputError(error.what());
    }
}

void print_json(const nlohmann::ordered_json& json) {
    std::printf("%s\n", json.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace).c_str());
}

// What asks for results does not go with what leaves the check out.
void check_combinations(const Arguments& arguments) {
    const auto refuse = [](bool given, const char* option, const char* with, const char* why) {
        if (given) throw tools::UsageError(std::string(option) + " cannot be used with " + with + ", " + why);
    };
    const char* leaves_out = arguments.summary ? "--summary" : arguments.list_only ? "--list" : nullptr;
    if (leaves_out != nullptr) {
        constexpr char kWhy[] = "which checks nothing";
        refuse(!arguments.csv.empty(), "--csv", leaves_out, kWhy);
        refuse(!arguments.picture.empty(), "--picture", leaves_out, kWhy);
        refuse(!arguments.npy.empty(), "--save-recomputed", leaves_out, kWhy);
        refuse(!arguments.html.empty(), "--html", leaves_out, kWhy);
        refuse(!arguments.against.empty(), "--against", leaves_out, kWhy);
        refuse(arguments.all, "--all", leaves_out, kWhy);
    }
    if (arguments.summary) {
        constexpr char kWhy[] = "which reads no record";
        refuse(arguments.list_only, "--list", "--summary", kWhy);
        refuse(arguments.shapes, "--shapes", "--summary", kWhy);
        refuse(arguments.step.has_value(), "--step", "--summary", kWhy);
        refuse(arguments.layer.has_value(), "--layer", "--summary", kWhy);
    }
    refuse(arguments.shapes && arguments.json && !arguments.list_only, "--shapes", "--json",
           "which is about the check; --list --json has the layouts");
    if (arguments.html_megabytes && arguments.html.empty()) {
        throw tools::UsageError(
            "--html-size is the size of the page that --html writes, which is not asked for");
    }
}

// False: --help or --version was asked for.
bool parse(int argc, char** argv, Arguments& arguments) {
    tools::CommandLine command("kqv-tensor-reader",
                               "Recomputes the attention recorded in a trace file and reports the errors.");
    std::string reference = "both";
    command.option("-i,--input,file", arguments.input, "Trace file").required().value_name("FILE");
    command.option(
        "--tol", arguments.check.tolerance,
        "Tolerance: largest error of a row over the largest |V| it sees, a tenth of its relative L2 error");
    command.option("--step", arguments.step, "This step only");
    command.option("--layer", arguments.layer, "This layer only (-1: all)");
    command.option("--reference", reference, "What judges: both, torch (float32) or double")
        .one_of({"both", "torch", "double"});
    command.flag("--shapes", arguments.shapes, "List the tensors with their layouts and the op's views");
    command.flag("--list", arguments.list_only, "List as --shapes does, and check nothing");
    command.flag(
        "--summary", arguments.summary,
        "Say what the file holds and stop: opens it, reads no record, so it is quick for any length");
    command.flag("--json", arguments.json, "Print one JSON object instead of text");
    command.flag("--all", arguments.all, "A line for every record, also where that is more than a screen");
    command.flag("-q,--quiet", arguments.quiet, "Print failures and the verdict only");
    command.option("--csv", arguments.csv, "Write one line per record").value_name("FILE");
    command.option("--picture", arguments.picture, "Write a map of the errors as SVG").value_name("FILE.svg");
    command
        .option("--html", arguments.html,
                "Write a page for the browser: map, pages, heads, layouts; one file that needs nothing else")
        .value_name("FILE.html");
    command
        .option(
            "--html-size", arguments.html_megabytes,
            "Size of that page in MB (default: 5): records get details until it is full, failing ones first")
        .range(1, 2000);
    command
        .option(
            "--against", arguments.against,
            "Trace of the same run with an F16 cache: its rows are the originals that quantization errors "
            "are counted from")
        .value_name("FILE");
    command
        .option("--save-recomputed", arguments.npy,
                "Write the output of one record (--layer, --step) as recomputed in double, as a NumPy array")
        .value_name("FILE.npy");
    if (!command.parse(argc, argv)) return false;
    check_combinations(arguments);
    if (arguments.layer && *arguments.layer == -1) arguments.layer.reset();
    if (!std::isfinite(arguments.check.tolerance) || arguments.check.tolerance <= 0) {
        throw tools::UsageError("--tol must be a positive number");
    }
    if (reference == "torch" && !has_torch()) {
        throw tools::UsageError("--reference torch: " + torch_text());
    }
    arguments.check.use = reference == "torch"    ? ReferenceUse::torch
                          : reference == "double" ? ReferenceUse::exact
                                                  : ReferenceUse::both;
    return true;
}

std::string references_text(ReferenceUse use) {
    if (use == ReferenceUse::exact) return "double reference";
    if (!has_torch()) return "the double reference alone (" + torch_text() + ")";
    return use == ReferenceUse::torch ? torch_text() : torch_text() + " (float32) and the double reference";
}

std::vector<trace::RecordId> chosen_records(const trace::TraceReader& reader, const Arguments& arguments) {
    std::vector<trace::RecordId> ids;
    for (const trace::RecordId id : reader.records()) {
        if (arguments.step.value_or(id.step) == id.step && arguments.layer.value_or(id.layer) == id.layer) {
            ids.push_back(id);
        }
    }
    if (ids.empty()) {
        throw Error(arguments.input + ": no record" +
                    (arguments.layer ? " of layer " + std::to_string(*arguments.layer) : "") +
                    (arguments.step ? " of step " + std::to_string(*arguments.step) : ""));
    }
    if (!arguments.npy.empty() && ids.size() != 1) {
        throw Error("--save-recomputed writes one record: choose it with --layer and --step");
    }
    return ids;
}

void print_failures(const Report& report, bool all) {
    const bool of_both = report.n_records(trace::CacheKind::mixed) > 0;
    size_t n_printed = 0, n_left = 0;
    for (const Report::Entry& entry : report.records) {
        if (entry.check.pass) continue;
        if (!all && n_printed == kScreenFailures) {
            ++n_left;
            continue;
        }
        ++n_printed;
        const bool of_host = of_both && entry.check.cache == trace::CacheKind::standard;
        std::fprintf(stderr, "FAIL %s%s: %s\n", place_text(entry.check.layer, entry.check.step).c_str(),
                     of_host ? " (the host's own kernel)" : "", entry.check.problem.c_str());
    }
    if (n_left > 0) std::fprintf(stderr, "FAIL %zu more records (--all)\n", n_left);
}

// "at most 3.1 % of the limit (layer 2, step 7, token 0 of head 5)"
std::string limit_text(const Report& report) {
    const RecordCheck* worst = report.worst();
    if (worst == nullptr) return "nothing checked";
    const ErrorFigures& row = worst->worst();
    char text[160];
    std::snprintf(text, sizeof text, "at most %.3g %% of the limit (%s, token %lld of head %lld%s)",
                  100 * row.limit_share, place_text(worst->layer, worst->step).c_str(),
                  static_cast<long long>(row.worst_token), static_cast<long long>(row.worst_head),
                  row.worst_stream > 0 ? (" in stream " + std::to_string(row.worst_stream)).c_str() : "");
    return text;
}

void print_verdict(const Report& report) {
    const size_t n_mixed = report.n_records(trace::CacheKind::mixed),
                 mixed_failed = report.n_failed(trace::CacheKind::mixed),
                 n_standard = report.n_records(trace::CacheKind::standard),
                 standard_failed = report.n_failed(trace::CacheKind::standard);
    std::printf(
        "%s: %s cache, %zu steps, %zu layers, %s; largest error %.3g, where %g of the largest |V| seen is "
        "allowed; against %s\n",
        report.pass() ? "PASS" : "FAIL", report.cache(), report.n_steps(), report.n_layers(),
        limit_text(report).c_str(), report.max_error(), report.tolerance, report.references.c_str());
    if (n_mixed > 0 && n_standard > 0) {
        std::printf(
            "%zu records are not of the mixed cache: the host computed them with its own kernel on a copy of "
            "the "
            "cache (a layer that shares another one's K and V, for example)\n"
            "out of tolerance: %zu of %zu mixed records, %zu of %zu of the host's own\n",
            n_standard, mixed_failed, n_mixed, standard_failed, n_standard);
    } else if (!report.pass()) {
        std::printf("%zu of %zu records are out of tolerance\n", mixed_failed + standard_failed,
                    report.records.size());
    }
    if (standard_failed > 0) {
        std::printf(
            "A standard record's error is llama.cpp's own: its kernels round q to the cache's type and add "
            "up F16 V "
            "in FP16.\n");
    }
}

// Where the rows come from that quantization errors are counted from: the trace itself, else another one.
class OriginalsSource {
  public:
    OriginalsSource(const trace::TraceReader& reader, const std::string& against) : kept_(reader) {
        if (!kept_.empty() && !against.empty()) {
            throw tools::UsageError(
                "--against: this trace keeps its own original rows (--keep-originals), leave it out");
        }
        if (!kept_.empty()) {
            text_ = "the rows as they were written";
        } else if (!against.empty()) {
            other_.emplace(against);
            text_ = "the exact rows of " + against;
        }
    }
    explicit operator bool() const { return !text_.empty(); }
    const std::string& text() const { return text_; }
    RecordOriginals of(const trace::TraceRecord& record) {
        return other_ ? originals_against(*other_, record) : originals_kept(kept_, record);
    }

  private:
    trace::OriginalRows kept_;
    std::optional<trace::TraceReader> other_;
    std::string text_;
};

// One line for each text of the recorder, long ones (a long run's tokens) cut.
void print_info(const trace::TraceReader& reader) {
    constexpr size_t kMaxText = 160;
    for (const auto& [name, value] : reader.info()) {
        const std::string end =
            value.size() > kMaxText ? "... (" + std::to_string(value.size()) + " characters)" : "";
        std::printf("%s: %s%s\n", name.c_str(), value.substr(0, kMaxText).c_str(), end.c_str());
    }
}

// What the file holds, from its header alone.
void print_summary(const trace::TraceReader& reader, const Arguments& arguments) {
    std::set<int32_t> steps, layers;
    for (const trace::RecordId id : reader.records()) {
        steps.insert(id.step);
        layers.insert(id.layer);
    }
    const char* form = reader.form() == trace::TraceForm::compact ? "compact" : "self-contained";
    const trace::GgufReader& file = reader.gguf();
    if (arguments.json) {
        nlohmann::ordered_json info = nlohmann::ordered_json::object();
        for (const auto& [name, value] : reader.info()) info[name] = value;
        print_json({{"file", arguments.input},
                    {"form", form},
                    {"records", reader.records().size()},
                    {"steps", steps.size()},
                    {"layers", layers.size()},
                    {"tensors", file.n_tensors()},
                    {"bytes", file.file_bytes()},
                    {"info", info}});
        return;
    }
    print_info(reader);
    std::printf("%zu records of %zu steps and %zu layers, %s form, %zu tensors, %s\n",
                reader.records().size(), steps.size(), layers.size(), form, file.n_tensors(),
                size_text(double(file.file_bytes())).c_str());
}

int run(const Arguments& arguments) {
    const trace::TraceReader reader(arguments.input);
    if (arguments.summary) {
        print_summary(reader, arguments);
        return kExitPass;
    }
    Report report;
    report.file = arguments.input;
    report.tolerance = arguments.check.tolerance;
    if (!arguments.list_only) report.references = references_text(arguments.check.use);
    OriginalsSource originals_source(reader, arguments.against);
    report.originals = originals_source.text();
    const bool text = !arguments.json && !arguments.quiet;
    if (text) {
        print_info(reader);
        std::printf("%zu records, %s form\n", reader.records().size(),
                    reader.form() == trace::TraceForm::compact ? "compact" : "self-contained");
    }
    nlohmann::ordered_json listed = {{"file", arguments.input}, {"records", nlohmann::ordered_json::array()}};
    for (const trace::RecordId id : chosen_records(reader, arguments)) {
        const trace::TraceRecord record = reader.load(id);
        if (arguments.list_only && arguments.json) {
            listed["records"].push_back(tensors_json(record));
            continue;
        }
        Report::Entry entry;
        for (const trace::GgufTensor& tensor : reader.tensors(id)) entry.tensors.emplace_back(tensor.name);
        if ((arguments.shapes || arguments.list_only) && !arguments.json) {
            std::printf("%s", describe_tensors(record).c_str());
        }
        if (!arguments.list_only) {
            if (originals_source) entry.quantization = quantization(record, originals_source.of(record));
            entry.check = check_record(record, arguments.check,
                                       arguments.npy.empty() ? KeepOutput::no : KeepOutput::yes);
            if (!arguments.npy.empty()) {
                write_file(arguments.npy,
                           npy_file({record.n_stream, record.n_tokens, record.n_head, record.head_dim_v},
                                    entry.check.recomputed));
            }
            report.records.push_back(std::move(entry));
        }
    }
    if (arguments.list_only) {
        if (arguments.json) print_json(listed);
        return kExitPass;
    }
    if (!arguments.html.empty()) {
        TracePageOptions options;
        options.check = arguments.check;
        if (arguments.html_megabytes) options.max_bytes = size_t(*arguments.html_megabytes) * 1'000'000;
        if (originals_source) {
            options.originals = [&](const auto& record) { return originals_source.of(record); };
        }
        write_file(arguments.html, trace_page(reader, report, options));
    }
    if (!arguments.csv.empty()) write_file(arguments.csv, to_csv(report));
    if (!arguments.picture.empty()) write_file(arguments.picture, to_svg(report));
    if (arguments.json) {
        print_json(to_json(report));
    } else {
        if (text) {
            std::printf("%s%s", to_table(report, arguments.all ? SIZE_MAX : kScreenRows).c_str(),
                        quantization_table(report, arguments.all ? SIZE_MAX : kScreenLayers).c_str());
        }
        print_verdict(report);
    }
    tools::flush_stdout();
    print_failures(report, arguments.all);
    return report.pass() ? kExitPass : kExitFail;
}

// What is refused is said as JSON, too, where JSON was asked for; the line on stderr is run_tool's.
int checked_run(const Arguments& arguments) {
    try {
        return run(arguments);
    } catch (const std::exception& error) {
        const bool no_memory = dynamic_cast<const std::bad_alloc*>(&error) != nullptr;
        if (arguments.json) {
            print_json({{"pass", false}, {"error", no_memory ? "out of memory" : error.what()}});
        }
        throw;
    }
}

}  // namespace

}  // namespace mixed_kv::trace_tools

int main(int argc, char** argv) {
    using namespace mixed_kv::trace_tools;
    return mixed_kv::tools::run_tool(
        "kqv-tensor-reader",
        [&] {
            Arguments arguments;
            return parse(argc, argv, arguments) ? checked_run(arguments) : kExitPass;
        },
        kExitRefused);
}
