#include "mixed-kv-run/arguments.h"

#include <cerrno>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <limits>
#include <random>

#include "common/command_line.h"
#include "common/cpu_topology.h"

namespace mixed_kv::tools {

namespace {

constexpr int kMaxThreads = 512;  // GGML_MAX_N_THREADS

std::string read_prompt_file(const std::string& path) {
    std::error_code ignored;
    std::ifstream file(path, std::ios::binary);
    if (!file || std::filesystem::is_directory(path, ignored)) {
        throw std::runtime_error("cannot read the prompt file '" + path +
                                 "': " + (file ? "it is a folder" : std::strerror(errno)));
    }
    std::string text{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
    if (!text.empty() &&
        text.back() == '\n') {  // as llama-cli: an editor's final line break is no part of the prompt
        text.pop_back();
    }
    return text;
}

ggml_type parse_cache_type(const std::string& option, const std::string& name) {
    const std::optional<ggml_type> type = cache_type_from_name(name);
    if (!type) {
        throw UsageError(option + ": unknown cache type '" + name + "', expected one of " +
                         cache_type_names());
    }
    return *type;
}

llama_flash_attn_type parse_flash_attention(const std::string& name) {
    if (name == "on") {
        return LLAMA_FLASH_ATTN_TYPE_ENABLED;
    }
    return name == "off" ? LLAMA_FLASH_ATTN_TYPE_DISABLED : LLAMA_FLASH_ATTN_TYPE_AUTO;
}

}  // namespace

std::optional<RunArguments> parse_run_arguments(int argc, char** argv) {
    RunArguments run;
    std::optional<std::string> prompt, prompt_file;
    std::string type_k = "f16", type_v = "f16", flash_attention = "auto";
    std::optional<int> threads, threads_batch;
    std::optional<std::uint32_t> seed;
    bool no_mixed = false, no_pool = false, no_warm_up = false;
    CacheOptions cache;

    CLI::App app("Runs a GGUF model on llama.cpp with a mixed-precision KV cache.", "mixed-kv-run");
    app.add_option("-m,--model", run.model, "GGUF model")->required()->type_name("FILE");
    app.add_option("-p,--prompt", prompt, "Text to continue; may be empty")->type_name("TEXT");
    app.add_option("-f,--file", prompt_file, "File with the text to continue")->type_name("FILE");
    app.add_option("-n,--predict", run.n_predict, "Tokens to generate")
        ->capture_default_str()
        ->check(CLI::Range(0, std::numeric_limits<int>::max()));
    app.add_option("-c,--ctx-size", run.n_ctx,
                   "Context in tokens; 0: as long as the model was trained for (default: that, at most 4096)")
        ->type_name("N");
    app.add_option("-b,--batch-size", run.context.n_batch, "Largest batch given to llama.cpp at once")
        ->capture_default_str()
        ->check(CLI::Range(1, 1 << 20));
    app.add_option("--ubatch-size", run.context.n_ubatch, "-ub: largest batch computed at once")
        ->capture_default_str()
        ->check(CLI::Range(1, 1 << 20));
    app.add_option("-t,--threads", threads, "Threads (default: the number of cores)")
        ->check(CLI::Range(1, kMaxThreads));
    app.add_option("--threads-batch", threads_batch, "-tb: threads for the prompt (default: as -t)")
        ->check(CLI::Range(1, kMaxThreads));
    app.add_option("--temp", run.temperature, "Temperature; 0: always the most probable token")
        ->capture_default_str();
    app.add_option("-s,--seed", seed, "Seed of the sampler (default: random)");
    app.add_option("--cache-type-k", type_k, "-ctk: llama.cpp's type of K; other than f16 stays unmixed")
        ->capture_default_str()
        ->type_name("TYPE");
    app.add_option("--cache-type-v", type_v, "-ctv: llama.cpp's type of V")
        ->capture_default_str()
        ->type_name("TYPE");
    app.add_option("--n-gpu-layers", run.n_gpu_layers, "-ngl: layers whose cache is mixed; -1: all")
        ->capture_default_str();
    app.add_option("--flash-attn", flash_attention, "-fa: flash attention; without it nothing is mixed")
        ->capture_default_str()
        ->check(CLI::IsMember({"auto", "on", "off"}));
    app.add_flag("--compare", run.compare, "Run llama.cpp's own F16 cache too and show both");
    app.add_flag("--json", run.json, "Print one JSON object instead of text");
    app.add_flag("--no-mixed", no_mixed, "Run llama.cpp's own cache only, without the plugin");
    app.add_flag("--ignore-eos", run.ignore_eos, "Go on after the model has ended its text");
    app.add_flag("--no-warmup", no_warm_up, "Do not touch the weights before measuring");
    app.add_flag("--no-threadpool", no_pool, "Attach no thread pool, as simple clients of libllama");
    app.add_flag("-v,--verbose", run.verbose, "Show llama.cpp's log");
    cache.add_to(app);

    const std::optional<int> done = parse_command_line(app, argc, argv,
                                                       {{"-ub", "--ubatch-size"},
                                                        {"-tb", "--threads-batch"},
                                                        {"-ctk", "--cache-type-k"},
                                                        {"-ctv", "--cache-type-v"},
                                                        {"-ngl", "--n-gpu-layers"},
                                                        {"-fa", "--flash-attn"}});
    if (done) {
        return std::nullopt;
    }
    if (prompt.has_value() == prompt_file.has_value()) {
        throw UsageError(prompt ? "give -p TEXT or -f FILE, not both" : "no prompt: give -p TEXT or -f FILE");
    }
    if (no_mixed && run.compare) {
        throw UsageError("--compare needs the mixed cache, which --no-mixed leaves out");
    }
    if (!std::isfinite(run.temperature) || run.temperature < 0) {
        throw UsageError("--temp: must be a number of at least 0");
    }
    run.prompt = prompt ? *prompt : read_prompt_file(*prompt_file);
    run.mixed = !no_mixed;
    run.warm_up = !no_warm_up;
    run.seed = seed ? *seed : std::random_device{}();
    run.context.n_threads = threads ? *threads : usable_cores();
    run.context.n_threads_batch = threads_batch ? *threads_batch : run.context.n_threads;
    run.context.type_k = parse_cache_type("-ctk", type_k);
    run.context.type_v = parse_cache_type("-ctv", type_v);
    run.context.flash_attention = parse_flash_attention(flash_attention);
    run.context.polling_pool = !no_pool;
    cache.export_and_check();
    return run;
}

}  // namespace mixed_kv::tools
