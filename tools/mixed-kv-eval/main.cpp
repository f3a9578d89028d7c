// mixed-kv-eval: what a cache's storage costs in quality, against exact F16 rows.
#include <fmt/format.h>
#include <unistd.h>

#include <cstdio>
#include <fstream>
#include <sstream>

#include "common/backends.h"
#include "common/command_line.h"
#include "common/llama_log.h"
#include "mixed-kv-eval/evaluation.h"
#include "mixed-kv-eval/output.h"
#include "mixed-kv-eval/recall.h"

namespace mixed_kv::tools {

namespace {

std::string read_text(const std::string& path) {
    std::ifstream file(path);
    if (!file) throw std::runtime_error(fmt::format("cannot open {}", path));
    std::stringstream text;
    text << file.rdbuf();
    return text.str();
}

void show_progress(const char* what, int done, int total) {
    if (isatty(STDERR_FILENO) == 1)
        fmt::print(stderr, "\r{}: {} of {}{}", what, done, total, done == total ? "\n" : "");
}

int run(int argc, char** argv) {
    CLI::App app{"Compares KV caches by the next-token distributions they give, against exact F16 rows."};
    std::string model_path, text_path, configs = "host:f16,host:q8_0,host:q4_0,mixed:balanced", recall_path;
    EvaluationOptions options;
    int recall_contexts = 0;
    bool json = false, csv = false;
    app.add_option("-m,--model", model_path, "GGUF model")->required();
    app.add_option("-f,--file", text_path, "Text to score")->required();
    app.add_option("-c,--ctx-size", options.n_ctx, "Tokens of a context; the second half is scored")
        ->check(CLI::Range(64, 1 << 20))
        ->capture_default_str();
    app.add_option("--ubatch", options.n_ubatch, "Tokens decoded at once")
        ->check(CLI::Range(1, 1 << 16))
        ->capture_default_str();
    app.add_option("-t,--threads", options.n_threads, "Threads")
        ->check(CLI::Range(1, 1024))
        ->capture_default_str();
    app.add_option("--chunks", options.max_chunks, "Contexts to score; 0: the whole text")
        ->check(CLI::Range(0, 1 << 20));
    app.add_option("--configs", configs,
                   "f16, host:TYPE[:norot], mixed:balanced, mixed:k=q4,v=q4,window=64,sinks=4; a list")
        ->capture_default_str();
    app.add_option("--recall", recall_path, "Recall test of the model (models/recall.jsonl)");
    app.add_option("--recall-contexts", recall_contexts, "Contexts of the recall test; 0: all")
        ->check(CLI::Range(0, 1 << 20));
    app.add_flag("--json", json, "Print one JSON object");
    app.add_flag("--csv", csv, "Print CSV");
    if (const auto status = parse_command_line(app, argc, argv, {})) return *status;

    const std::vector<Configuration> configurations = parse_configurations(configs);
    const std::string text = read_text(text_path);
    capture_log(LogDisplay::nothing);
    load_backends(find_backend_paths(), PluginUse::load);
    const auto plugin = Plugin::find();
    if (!plugin) throw std::runtime_error("the plugin is not loaded (mixed-kv-doctor says more)");
    const ModelHandle host = load_model({model_path, CacheOwner::host});
    const ModelHandle ours = load_model({model_path, CacheOwner::plugin, plugin->device()});
    const std::vector<llama_token> tokens = [&] {
        auto all = tokenize(llama_model_get_vocab(ours.get()), text);
        if (!all.empty() && all.front() == llama_vocab_bos(llama_model_get_vocab(ours.get())))
            all.erase(all.begin());
        return all;
    }();

    const Evaluation evaluation =
        evaluate(configurations, *plugin, host.get(), ours.get(), tokens, options,
                 [](int done, int total) { show_progress("contexts", done, total); });
    std::vector<RecallResult> recalls;
    if (!recall_path.empty()) {
        recalls = recall(configurations, *plugin, host.get(), ours.get(), recall_path, options.n_ctx,
                         options.n_ubatch, options.n_threads, recall_contexts,
                         [](int done, int total) { show_progress("recall", done, total); });
    }
    if (json) {
        fmt::print("{}\n", to_json(evaluation, recalls).dump(2));
    } else {
        fmt::print("{}", csv ? to_csv(evaluation, recalls) : to_markdown(evaluation, recalls));
    }
    return kExitOk;
}

}  // namespace

}  // namespace mixed_kv::tools

int main(int argc, char** argv) {
    return mixed_kv::tools::run_tool("mixed-kv-eval", [&] { return mixed_kv::tools::run(argc, argv); });
}
