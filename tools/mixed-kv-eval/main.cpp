// mixed-kv-eval: what a cache's storage costs in quality, against exact F16 rows.
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "common/backends.h"
#include "common/command_line.h"
#include "common/llama_log.h"
#include "common/llama_option.h"
#include "common/run_tool.h"
#include "common/text_file.h"
#include "eval_scripts.h"
#include "html/page.h"
#include "mixed-kv-eval/calibrate.h"
#include "mixed-kv-eval/evaluation.h"
#include "mixed-kv-eval/output.h"
#include "mixed-kv-eval/recall.h"
#include "trace/output_file.h"

namespace mixed_kv::tools {

namespace {

constexpr int kMany = 1 << 20;

void show_progress(const char* what, int done, int total) {
    if (isatty(STDERR_FILENO) == 1)
        fmt::print(stderr, "\r{}: {} of {}{}", what, done, total, done == total ? "\n" : "");
}

void write_calibration(const std::string& path, const Calibration& calibration) {
    trace::write_output_file(path, calibration.to_text());
    write_stdout(
        fmt::format("{}: {} tensors of {}; use it with GGML_MIXED_KV_BITS=N GGML_MIXED_KV_CALIBRATION={}\n",
                    path, calibration.tensors.size(), calibration.model, path));
}

int run(int argc, char** argv) {
    CommandLine command(
        "mixed-kv-eval",
        "Compares KV caches by the next-token distributions they give, against exact F16 rows.");
    std::string model_path, text_path, configs = "host:f16,host:q8_0,host:q4_0,mixed:balanced", recall_path;
    EvaluationOptions options;
    std::string baseline, plot_prefix, html;
    int recall_contexts = 0, greedy_tokens = 0, greedy_prompts = 4, first_chunk = 0;
    bool json = false, csv = false;
    std::string calibrated_model, output_path;
    command.option("-m,--model", model_path, "GGUF model").value_name("FILE");
    command
        .option("--calibrate", calibrated_model,
                "Measure what each layer's formats cost this GGUF model and write the file that "
                "GGML_MIXED_KV_CALIBRATION names")
        .value_name("FILE");
    command.option("-o,--output", output_path, "File that --calibrate writes (default: MODEL.kv-calibration)")
        .value_name("FILE");
    command.option("-f,--file", text_path, "Text to score").required().value_name("FILE");
    command.option("-c,--ctx-size", options.n_ctx, "Tokens of a context; the second half is scored")
        .range(64, kMany);
    command.option("-ub,--ubatch-size,--ubatch", options.n_ubatch, "tokens decoded at once")
        .range(1, 1 << 16);
    command.option("-t,--threads", options.n_threads, "Threads").range(1, 1024);
    command.option("--chunks", options.max_chunks, "Contexts to score; 0: the whole text").range(0, kMany);
    command.option("--first-chunk", first_chunk, "Contexts at the beginning of the text to pass over")
        .range(0, kMany);
    command.option(
        "--configs", configs,
        "f16, host:TYPE[:norot], mixed:PRESET, mixed:k=q4,v=q4,window=64,sinks=4,layers=RULES; "
        "host:TYPE+64+4: that type beside a window of 64 rows and 4 sinks; format:K[/V]+64+4: the same with "
        "our formats, +0+0: no row in FP16; a list");
    command.option("--recall", recall_path, "Recall test of the model (models/recall.jsonl)")
        .value_name("FILE");
    command.option("--recall-contexts", recall_contexts, "Contexts of the recall test; 0: all")
        .range(0, kMany);
    command.option("--baseline", baseline, "Configuration of the list that KLDs are compared with")
        .value_name("CONFIG");
    command
        .option("--greedy", greedy_tokens,
                "Also continue prompts greedily by N tokens and count those like exact rows'; 0: no")
        .value_name("N")
        .range(0, kMany);
    command.option("--greedy-prompts", greedy_prompts, "Prompts for --greedy, halves of the text's contexts")
        .range(1, kMany);
    command.option("--plot", plot_prefix, "Write PREFIX-kld.svg, and with --recall PREFIX-recall.svg")
        .value_name("PREFIX");
    command
        .option("--html", html, "Write a page for the browser: KLD against bits, tail, recall, all figures")
        .value_name("FILE.html");
    command
        .option("--resume", options.progress_path,
                "File that keeps the results by configuration and context; what it holds is not run again")
        .value_name("FILE");
    LlamaOption llama;
    llama.add_to(command);
    command.flag("--json", json, "Print one JSON object");
    command.flag("--csv", csv, "Print CSV");
    if (!command.parse(argc, argv)) return kExitOk;
    llama.use();

    if (!model_path.empty() && !calibrated_model.empty()) {
        throw UsageError("-m and --calibrate exclude each other");
    }
    if (!output_path.empty() && calibrated_model.empty()) {
        throw UsageError("-o names the file that --calibrate writes, which is not asked for");
    }
    const bool calibrating = !calibrated_model.empty();
    if (calibrating && !(html.empty() && plot_prefix.empty())) {
        throw UsageError("--html and --plot show an evaluation, which --calibrate does not make");
    }
    if (calibrating) model_path = calibrated_model;
    if (model_path.empty()) throw UsageError("no model: give -m MODEL or --calibrate MODEL");
    const std::vector<Configuration> configurations = parse_configurations(configs);
    const auto has_baseline = [&](const Configuration& c) { return c.name == baseline; };
    if (!baseline.empty() && std::none_of(configurations.begin(), configurations.end(), has_baseline)) {
        throw UsageError(fmt::format("--baseline {}: not among the configurations", baseline));
    }
    for (const Configuration& c : configurations) {
        if (greedy_tokens > 0 && c.has_formats && c.coded->none()) {
            throw std::runtime_error(
                fmt::format("'{}': --greedy adds row by row, and formats store whole pages: give it a "
                            "window or sinks",
                            c.name));
        }
    }
    const std::string text = read_text_file("the text", text_path);
    capture_log(LogDisplay::nothing);
    const BackendPaths paths = find_backend_paths();
    load_backends(paths, PluginUse::load);
    const Plugin plugin = Plugin::require(paths);
    const bool needs_host = std::any_of(configurations.begin(), configurations.end(),
                                        [](const Configuration& c) { return c.owner == CacheOwner::host; });
    const ModelHandle host =
        calibrating || !needs_host ? nullptr : load_model({model_path, CacheOwner::host});
    const ModelHandle ours = load_model({model_path, CacheOwner::plugin, plugin.device()});
    const std::vector<llama_token> tokens = [&] {
        auto all = tokenize(llama_model_get_vocab(ours.get()), text);
        if (!all.empty() && all.front() == llama_vocab_bos(llama_model_get_vocab(ours.get())))
            all.erase(all.begin());
        // A context holds BOS and n_ctx - 1 tokens of the text.
        const auto skipped = std::size_t(first_chunk) * std::size_t(options.n_ctx - 1);
        if (first_chunk > 0 && skipped >= all.size()) {
            throw std::runtime_error(fmt::format("--first-chunk {} passes over {} tokens; the text has {}",
                                                 first_chunk, skipped, all.size()));
        }
        all.erase(all.begin(), all.begin() + std::ptrdiff_t(skipped));
        return all;
    }();

    if (calibrating) {
        const Calibration calibration =
            calibrate(std::filesystem::path(model_path).filename().string(), plugin, ours.get(), tokens,
                      options, [](int done, int total) { show_progress("probes", done, total); });
        write_calibration(output_path.empty() ? model_path + ".kv-calibration" : output_path, calibration);
        return kExitOk;
    }
    EvaluationReport report;
    report.baseline = baseline;
    report.evaluation = evaluate(configurations, plugin, host.get(), ours.get(), tokens, options,
                                 [](int done, int total) { show_progress("contexts", done, total); });
    for (const Result& result : report.evaluation.results) {
        if (nothing_was_cold(result)) {
            fmt::print(stderr,
                       "mixed-kv-eval: warning: {}: nothing was cold where it was scored, so this is not its "
                       "quality; rows become cold when they have left the window and a later ubatch comes: "
                       "a smaller --ubatch (now {}), a smaller window or a longer -c (now {}) brings some\n",
                       result.name, options.n_ubatch, options.n_ctx);
        }
    }
    if (!recall_path.empty()) {
        report.recalls = recall(configurations, plugin, host.get(), ours.get(), recall_path, options.n_ctx,
                                options.n_ubatch, options.n_threads, recall_contexts,
                                [](int done, int total) { show_progress("recall", done, total); });
    }
    if (greedy_tokens > 0) {
        ContextOptions context;
        context.n_ctx = std::uint32_t(options.n_ctx);
        context.n_batch = context.n_ubatch = std::uint32_t(options.n_ubatch);
        context.n_threads = context.n_threads_batch = options.n_threads;
        context.polling_pool = false;
        report.greedy = greedy_divergence(configurations, plugin, host.get(), ours.get(), tokens, context,
                                          greedy_prompts, greedy_tokens,
                                          [](int done, int total) { show_progress("greedy", done, total); });
    }
    if (!plot_prefix.empty()) {
        trace::write_output_file(plot_prefix + "-kld.svg", kld_plot(report));
        if (!report.recalls.empty())
            trace::write_output_file(plot_prefix + "-recall.svg", recall_plot(report));
    }
    if (!html.empty()) {
        trace::write_output_file(html, report_page("Quality of KV caches", kEvalScripts, to_json(report)));
    }
    if (json) {
        write_stdout(to_json(report).dump(2) + "\n");
    } else {
        write_stdout(csv ? to_csv(report) : to_markdown(report));
    }
    return kExitOk;
}

}  // namespace

}  // namespace mixed_kv::tools

int main(int argc, char** argv) {
    return mixed_kv::tools::run_tool("mixed-kv-eval", [&] { return mixed_kv::tools::run(argc, argv); });
}
