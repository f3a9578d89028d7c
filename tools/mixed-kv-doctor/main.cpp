// mixed-kv-doctor: says what a user needs when the mixed KV cache does not work.

#include <fmt/format.h>

#include "common/command_line.h"
#include "common/generation_options.h"
#include "common/llama_log.h"
#include "common/llama_option.h"
#include "common/run_tool.h"
#include "mixed-kv-doctor/examine.h"
#include "mixed-kv-doctor/plan/examine_plan.h"

namespace mixed_kv::tools {

namespace {

// What is said at the end.
struct Verdict {
    const char *good, *bad;
};
constexpr Verdict kOfInstallation = {"\nall is well\n", "\nthe mixed KV cache does not work as asked\n"};
constexpr Verdict kOfPlan = {"", "\nit does not fit\n"};

void print_for_people(const Diagnosis& diagnosis, const Verdict& verdict) {
    for (const Finding& finding : diagnosis.findings) {
        std::string heading = finding.heading;
        for (const std::string& line : finding.lines) {
            write_stdout(fmt::format("{:<11}{}\n", heading, line));
            heading.clear();
        }
    }
    for (const Problem& problem : diagnosis.problems) {
        write_stdout(fmt::format("\nproblem    {}\nwhat to do {}\n", problem.what, problem.advice));
    }
    write_stdout(diagnosis.healthy() ? verdict.good : verdict.bad);
}

// about_ggml: a ggml was looked at.
void print_json(const Diagnosis& diagnosis, bool about_ggml) {
    nlohmann::ordered_json json = {{"healthy", diagnosis.healthy()}};
    if (about_ggml) {
        json["fits"] = diagnosis.ggml.fits;
        json["ggml_version"] = diagnosis.ggml.version;
        json["ggml_commit"] = diagnosis.ggml.commit;
        json["api_version"] = diagnosis.ggml.api_version;
    }
    json["problems"] = nlohmann::ordered_json::array();
    for (const Problem& problem : diagnosis.problems) {
        json["problems"].push_back({{"what", problem.what}, {"advice", problem.advice}});
    }
    for (const Finding& finding : diagnosis.findings) {
        json[finding.key] = finding.facts;
    }
    write_stdout(json.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n");
}

int print(const Diagnosis& diagnosis, bool json, bool is_plan) {
    if (json) {
        print_json(diagnosis, !is_plan);
    } else {
        print_for_people(diagnosis, is_plan ? kOfPlan : kOfInstallation);
    }
    return diagnosis.healthy() ? kExitOk : kExitFailure;
}

void check_plan_options(bool plan, const std::string& machines, const std::optional<int>& sequences,
                        const std::string& model, const std::string& llama) {
    if (!plan && (!machines.empty() || sequences))
        throw UsageError("--machines, --sequences: only with --plan");
    if (plan && (machines.empty() || model.empty())) throw UsageError("--plan: needs -m and --machines");
    if (plan && !llama.empty()) throw UsageError("--plan and --llama: one at a time");
}

int run(int argc, char** argv) {
    ModelQuestion question;
    std::string type_k = "f16", type_v = "f16", llama, machines;
    bool find = false, json = false, verbose = false, plan = false;
    std::optional<int> sequences;
    CacheOptions cache;
    CommandLine command("mixed-kv-doctor",
                        "Says whether the mixed KV cache works here, and what is missing when it does not.");
    command
        .option(
            "--llama", llama,
            "Another llama.cpp instead of the one of this program: which ggml it has, and whether the plugin "
            "fits it")
        .value_name("FOLDER");
    command.flag("--find", find,
                 "Look for installations of llama.cpp, and say which of them the plugin fits");
    command.option("-m,--model", question.path, "GGUF model: what would its cache be?").value_name("FILE");
    command.option("-c,--ctx-size", question.n_ctx,
                   "Context in tokens; 0: as long as the model was trained for");
    command.option("-ctk,--cache-type-k", type_k, "llama.cpp's type of K").value_name("TYPE");
    command.option("-ctv,--cache-type-v", type_v, "llama.cpp's type of V").value_name("TYPE");
    command.flag("--plan", plan,
                 "What fits and how fast it can be when the model's layers are spread over machines");
    command.option("--machines", machines, "JSON list of the machines of --plan (docs/cluster.md)")
        .value_name("FILE");
    command
        .option("--sequences", sequences, "Sequences of --plan, each with a context of -c; 1 when not given")
        .at_least(1);
    cache.add_to(command);
    command.flag("--json", json, "Print one JSON object");
    command.flag("-v,--verbose", verbose, "Show llama.cpp's log");
    if (!command.parse(argc, argv)) return kExitOk;
    if ((find || !llama.empty()) && !question.path.empty()) {
        throw UsageError(
            "--llama and --find go without -m: a model is tried with the llama.cpp of this program only");
    }
    check_plan_options(plan, machines, sequences, question.path, llama);
    if (find && !llama.empty()) throw UsageError("--llama and --find exclude each other");
    question.type_k = parse_cache_type("-ctk", type_k);
    question.type_v = parse_cache_type("-ctv", type_v);
    cache.export_all();

    if (!find && llama.empty()) LlamaOption().use();
    capture_log(verbose ? LogDisplay::everything : LogDisplay::nothing);
    Diagnosis diagnosis;
    if (plan) {
        examine_plan({question.path, machines, question.n_ctx, sequences.value_or(1)}, diagnosis);
        return print(diagnosis, json, true);
    }
    std::optional<Plugin> plugin;
    if (find) {
        examine_installed_llamas(diagnosis);
    } else if (!llama.empty()) {
        examine_llama(llama, diagnosis);
    } else {
        plugin = examine_installation(diagnosis);
    }
    if (!question.path.empty()) {
        try {
            if (plugin) {
                examine_model(question, *plugin, diagnosis);
            }
        } catch (const std::runtime_error& error) {
            diagnosis.problems.push_back(problem_with_model(one_line(error.what())));
        }
    }
    return print(diagnosis, json, false);
}

}  // namespace

}  // namespace mixed_kv::tools

int main(int argc, char** argv) {
    return mixed_kv::tools::run_tool("mixed-kv-doctor", [&] { return mixed_kv::tools::run(argc, argv); });
}
