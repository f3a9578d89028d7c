#include "kqv-trace-monitor/arguments.h"

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
    if (!text.empty() && text.back() == '\n') text.pop_back();  // as llama-cli
    return text;
}

ggml_type parse_cache_type(const char* option, const std::string& name) {
    const std::optional<ggml_type> type = cache_type_from_name(name);
    if (!type) {
        throw UsageError(std::string(option) + ": unknown cache type '" + name + "', expected one of " +
                         cache_type_names());
    }
    return *type;
}

bool is_flash_attention(const std::string& text) { return text == "on" || text == "off" || text == "auto"; }

// An old habit is kept: -fa without a value means on.
std::vector<std::string> with_flash_attention_value(int argc, char** argv) {
    std::vector<std::string> arguments;
    for (int i = 0; i < argc; ++i) {
        arguments.emplace_back(argv[i]);
        const std::string before = i > 1 ? argv[i - 1] : "";
        const bool is_option = (arguments.back() == "-fa" || arguments.back() == "--flash-attn") &&
                               before != "-p" && before != "--prompt";
        if (is_option && (i + 1 == argc || !is_flash_attention(argv[i + 1]))) arguments.emplace_back("on");
    }
    return arguments;
}

std::string quoted_command_line(int argc, char** argv) {
    std::string line;
    for (int i = 0; i < argc; ++i) {
        const std::string argument = i == 0 ? std::filesystem::path(argv[0]).filename().string() : argv[i];
        const bool plain =
            !argument.empty() && argument.find_first_of(" \t\n'\"\\$&|;<>()*?`") == std::string::npos;
        line += (i > 0 ? " " : "") + (plain ? argument : "'" + argument + "'");
    }
    return line;
}

llama_flash_attn_type parse_flash_attention(const std::string& name) {
    if (name == "on") return LLAMA_FLASH_ATTN_TYPE_ENABLED;
    return name == "off" ? LLAMA_FLASH_ATTN_TYPE_DISABLED : LLAMA_FLASH_ATTN_TYPE_AUTO;
}

}  // namespace

std::optional<MonitorArguments> parse_monitor_arguments(int argc, char** argv) {
    MonitorArguments m;
    std::optional<std::string> prompt, prompt_file;
    std::string type_k = "f16", type_v = "f16", flash_attention = "auto";
    std::optional<int> threads;
    std::optional<std::uint32_t> seed;
    bool no_sources = false;
    CacheOptions cache;

    CLI::App app("Runs a GGUF model on llama.cpp and records its attention, op by op, to a trace file.",
                 "kqv-trace-monitor");
    app.add_option("-m,--model", m.model, "GGUF model")->required()->type_name("FILE");
    app.add_option("-p,--prompt", prompt, "Text to continue; empty: begin with BOS")->type_name("TEXT");
    app.add_option("-f,--file", prompt_file, "File with the text to continue")->type_name("FILE");
    app.add_option("-n,--predict", m.n_predict, "Tokens to generate")
        ->capture_default_str()
        ->check(CLI::Range(0, std::numeric_limits<int>::max()));
    app.add_option("-c,--ctx-size", m.n_ctx,
                   "Context in tokens; 0: as long as the model was trained for (default: that, at most 4096)")
        ->type_name("N");
    app.add_option("-b,--batch-size", m.context.n_batch, "Largest batch given to llama.cpp at once")
        ->capture_default_str()
        ->check(CLI::Range(1, 1 << 20));
    app.add_option("--ubatch-size", m.context.n_ubatch, "-ub: largest batch computed at once, one step each")
        ->capture_default_str()
        ->check(CLI::Range(1, 1 << 20));
    app.add_option("-t,--threads", threads, "Threads (default: the number of cores)")
        ->check(CLI::Range(1, kMaxThreads));
    app.add_option("--temp", m.temperature, "Temperature; 0: always the most probable token")
        ->capture_default_str();
    app.add_option("-s,--seed", seed, "Seed of the sampler (default: random)");
    app.add_option("--cache-type-k", type_k, "-ctk: llama.cpp's type of K")
        ->capture_default_str()
        ->type_name("TYPE");
    app.add_option("--cache-type-v", type_v, "-ctv: llama.cpp's type of V")
        ->capture_default_str()
        ->type_name("TYPE");
    app.add_option("--n-gpu-layers", m.n_gpu_layers,
                   "-ngl: with --mixed-kv-cache the layers whose cache is mixed; 0 and -1: all")
        ->capture_default_str();
    app.add_option("--flash-attn", flash_attention, "-fa: flash attention; alone it means on")
        ->capture_default_str()
        ->check(CLI::IsMember({"auto", "on", "off"}));
    app.add_option("--layer", m.layer, "Layer to record; -1: all")
        ->capture_default_str()
        ->check(CLI::Range(-1, std::numeric_limits<int>::max()));
    app.add_flag("--mixed-kv-cache", m.mixed, "Use the mixed KV cache; without it llama.cpp's own is traced");
    app.add_option("--save-gguf", m.save_gguf, "Trace file to write")->type_name("FILE");
    app.add_flag("--no-trace-sources", no_sources, "Record kqv_out alone");
    app.add_option("--max-steps", m.max_steps, "Record this many steps at most; -1: all, 0: none")
        ->capture_default_str()
        ->check(CLI::Range(-1, std::numeric_limits<int>::max()));
    app.add_flag("--compact", m.compact, "Store each version of a row or block once; for long runs");
    app.add_option("--save-logits", m.save_logits, "Write each step's logits, float32, to compare runs")
        ->type_name("FILE");
    app.add_flag("-q,--quiet", m.quiet, "No tables, no progress");
    app.add_flag("-v,--verbose", m.verbose, "Show each tensor's views, and llama.cpp's log");
    cache.add_to(app);

    std::vector<std::string> texts = with_flash_attention_value(argc, argv);
    std::vector<char*> arguments;
    for (std::string& text : texts) arguments.push_back(text.data());
    if (parse_command_line(app, int(arguments.size()), arguments.data(),
                           {{"-ub", "--ubatch-size"},
                            {"-ctk", "--cache-type-k"},
                            {"-ctv", "--cache-type-v"},
                            {"-ngl", "--n-gpu-layers"},
                            {"-fa", "--flash-attn"}})) {
        return std::nullopt;
    }
    if (prompt.has_value() == prompt_file.has_value()) {
        throw UsageError(prompt ? "give -p TEXT or -f FILE, not both" : "no prompt: give -p TEXT or -f FILE");
    }
    if (!std::isfinite(m.temperature) || m.temperature < 0) {
        throw UsageError("--temp: must be a number of at least 0");
    }
    if (m.quiet && m.verbose) throw UsageError("-q and -v exclude each other");
    m.prompt = prompt ? *prompt : read_prompt_file(*prompt_file);
    m.sources = !no_sources;
    m.seed = seed ? *seed : std::random_device{}();
    m.context.n_threads = threads ? *threads : usable_cores();
    m.context.n_threads_batch = m.context.n_threads;
    m.context.type_k = parse_cache_type("-ctk", type_k);
    m.context.type_v = parse_cache_type("-ctv", type_v);
    m.context.flash_attention = parse_flash_attention(flash_attention);
    // Idle workers of a pool that spins would only get into the way of reading and writing.
    m.context.polling_pool = false;
    m.command_line = quoted_command_line(argc, argv);
    cache.export_and_check();
    return m;
}

}  // namespace mixed_kv::tools
