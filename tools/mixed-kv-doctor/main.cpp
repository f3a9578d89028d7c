// mixed-kv-doctor: says what a user needs when the mixed KV cache does not work.

#include <fmt/format.h>

#include <cstdio>

#include "common/command_line.h"
#include "common/llama_handles.h"
#include "common/llama_log.h"
#include "mixed-kv-doctor/examine.h"

namespace mixed_kv::tools {

namespace {

void print_for_people(const Diagnosis& diagnosis) {
    for (const Finding& finding : diagnosis.findings) {
        std::string heading = finding.heading;
        for (const std::string& line : finding.lines) {
            fmt::print("{:<11}{}\n", heading, line);
            heading.clear();
        }
    }
    for (const Problem& problem : diagnosis.problems) {
        fmt::print("\nproblem    {}\nwhat to do {}\n", problem.what, problem.advice);
    }
    fmt::print("\n{}\n", diagnosis.healthy() ? "all is well" : "the mixed KV cache does not work as asked");
}

void print_json(const Diagnosis& diagnosis) {
    nlohmann::ordered_json json = {{"healthy", diagnosis.healthy()}};
    json["problems"] = nlohmann::ordered_json::array();
    for (const Problem& problem : diagnosis.problems) {
        json["problems"].push_back({{"what", problem.what}, {"advice", problem.advice}});
    }
    for (const Finding& finding : diagnosis.findings) {
        json[finding.key] = finding.facts;
    }
    fmt::print("{}\n", json.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace));
}

ggml_type parse_type(const std::string& option, const std::string& name) {
    const std::optional<ggml_type> type = cache_type_from_name(name);
    if (!type) {
        throw UsageError(option + ": unknown cache type '" + name + "', expected one of " +
                         cache_type_names());
    }
    return *type;
}

int run(int argc, char** argv) {
    ModelQuestion question;
    std::string type_k = "f16", type_v = "f16";
    bool json = false, verbose = false;
    CLI::App app("Says whether the mixed KV cache works here, and what is missing when it does not.",
                 "mixed-kv-doctor");
    app.add_option("-m,--model", question.path, "GGUF model: what would its cache be?")->type_name("FILE");
    app.add_option("-c,--ctx-size", question.n_ctx,
                   "Context in tokens; 0: as long as the model was trained for")
        ->capture_default_str();
    app.add_option("--cache-type-k", type_k, "-ctk: llama.cpp's type of K")->capture_default_str();
    app.add_option("--cache-type-v", type_v, "-ctv: llama.cpp's type of V")->capture_default_str();
    app.add_flag("--json", json, "Print one JSON object");
    app.add_flag("-v,--verbose", verbose, "Show llama.cpp's log");
    if (parse_command_line(app, argc, argv, {{"-ctk", "--cache-type-k"}, {"-ctv", "--cache-type-v"}})) {
        return kExitOk;
    }
    question.type_k = parse_type("-ctk", type_k);
    question.type_v = parse_type("-ctv", type_v);

    capture_log(verbose ? LogDisplay::everything : LogDisplay::nothing);
    Diagnosis diagnosis;
    std::optional<Plugin> plugin = examine_installation(diagnosis);
    if (!question.path.empty()) {
        try {
            if (plugin) {
                examine_model(question, *plugin, diagnosis);
            }
        } catch (const std::runtime_error& error) {
            diagnosis.problems.push_back(
                {one_line(error.what()), "correct -m or -c; -v shows llama.cpp's log"});
        }
    }
    if (json) {
        print_json(diagnosis);
    } else {
        print_for_people(diagnosis);
    }
    return diagnosis.healthy() ? kExitOk : kExitFailure;
}

}  // namespace

}  // namespace mixed_kv::tools

int main(int argc, char** argv) {
    return mixed_kv::tools::run_tool("mixed-kv-doctor", [&] { return mixed_kv::tools::run(argc, argv); });
}
