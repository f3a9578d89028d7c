#include "mixed-kv-bench/arguments.h"

#include <fmt/format.h>

#include <algorithm>

#include "common/command_line.h"
#include "common/cpu_topology.h"
#include "common/llama_option.h"
#include "common/run_tool.h"
#include "kernels/contract.h"
#include "mixed_kv/cold_format.h"
#include "mixed_kv/error.h"
#include "mixed_kv/isa.h"
#include "mixed_kv/settings.h"

namespace mixed_kv::tools {

namespace {

constexpr int kMaxThreads = 512;  // GGML_MAX_N_THREADS
constexpr int kMaxPlacements = 16;
constexpr int kMinRounds = 5;      // for a median and quartiles
constexpr int kMaxPrompt = 4096;   // tokens of one sequence's ubatch
constexpr int kMaxStep = 16384;    // tokens that all sequences decode together
constexpr int kMaxParallel = 256;  // LLAMA_MAX_SEQ
constexpr std::int64_t kMaxRows = std::int64_t(1) << 24;

const std::vector<std::string> kHostTypes = {"f16", "q8_0", "q4_0"};

std::string format_names() {
    std::string names = "f16";
    for (const ColdFormat& format : cold_formats()) names += ", " + std::string(format.name);
    return names;
}

void check_formats(const char* option, const std::vector<std::string>& formats) {
    for (const std::string& name : formats) {
        if (name != "f16" && find_cold_format(name) == nullptr)
            throw UsageError(
                fmt::format("{}: unknown format '{}', expected {}", option, name, format_names()));
    }
}

// The raw texts of the command line.
struct Texts {
    std::vector<std::string> k, v, host = kHostTypes;
    std::string isa, html;
    std::optional<int> threads;
    bool json = false, csv = false, markdown = false;
    LlamaOption llama;
};

void add_common(CommandLine& command, BenchArguments& bench, Texts& texts) {
    command.option("--k", texts.k, "Formats of cold K pages: " + format_names()).value_name("FMT");
    command.option("--v", texts.v, "Formats of cold V pages; as many as --k: pairs, else all combinations")
        .value_name("FMT");
    command.option("--threads,-t", texts.threads, "Threads (default: the number of cores)")
        .range(1, kMaxThreads);
    command.option("--isa", texts.isa, "Kernel set (default: MIXED_KV_ISA, else the fastest)")
        .value_name("NAME");
    command.option("--host", texts.host, "Host cache types to compare with: f16, q8_0, q4_0, or none")
        .value_name("TYPE");
    command
        .option("--host-placements", bench.host_placements,
                "How often the host's caches are created, in other memory each time; the fastest counts")
        .range(1, kMaxPlacements);
    texts.llama.add_to(command);
    command.flag("--json", texts.json, "Print one JSON object");
    command.flag("--csv", texts.csv, "Print CSV");
    command.flag("--md", texts.markdown, "Print Markdown tables");
    command.option("--html", texts.html, "Write a page for the browser: speed against depth, ratios")
        .value_name("FILE.html");
}

void add_measuring(CommandLine& command, BenchArguments& bench) {
    command
        .option(
            "--rotate-mib", bench.rotation_mib,
            "Least MiB that every measurement rotates through; from 1024 on at least twice the last-level "
            "cache. Less may measure caches, and the output says so")
        .range(1, 1 << 20);
    command.option("--rounds", bench.n_rounds, "Interleaved rounds; medians and quartiles are over these")
        .range(kMinRounds, 10000);
}

// What the environment asks for is the default, and what it is without any where that is refused: --help, and
// the modes that take no part in it, work all the same. Those that do are refused later.
Settings defaults_of_environment() {
    try {
        return Settings::from_environment();
    } catch (const Error&) {
        return Settings::from_environment([](const char*) { return std::nullopt; });
    }
}

void add_model(CommandLine& command, BenchArguments& bench, Texts& texts) {
    const Settings defaults = defaults_of_environment();
    bench.window = defaults.window;
    bench.sinks = defaults.sinks;
    texts.k = {std::string(format_name(defaults.key_format))};
    texts.v = {std::string(format_name(defaults.value_format))};
    command.option("-m,--model", bench.model, "GGUF model").required().value_name("FILE");
    command.option("--window", bench.window, "Newest rows kept in FP16").at_least(0);
    command.option("--sinks", bench.sinks, "First rows kept in FP16").at_least(0);
}

void add_shape(CommandLine& command, BenchArguments& bench) {
    command.option("--head-dim", bench.head_dim, "Channels of a head").range(1, kernels::kMaxHeadDim);
    command.option("--n-head", bench.n_head, "Query heads").range(1, 1024);
    command.option("--n-head-kv", bench.n_head_kv, "K and V heads").range(1, 1024);
    command.option("--n-q", bench.n_q, "Query rows per sequence, the last tokens of it").range(1, kMaxRows);
    command.option("--n-seq", bench.n_seq, "Sequences, each with a stream of its own").range(1, 256);
}

void check_shape(const BenchArguments& bench) {
    if (bench.n_head % bench.n_head_kv != 0)
        throw UsageError(
            fmt::format("--n-head {} is no multiple of --n-head-kv {}", bench.n_head, bench.n_head_kv));
    for (const AttentionShape& shape : bench.shapes()) {
        if (shape.n_kv < shape.n_q)
            throw UsageError(fmt::format("--n-kv {} has no room for --n-q {}", shape.n_kv, shape.n_q));
        if (shape.n_hot > shape.n_kv)
            throw UsageError(fmt::format("--hot {} is more than --n-kv {}", shape.n_hot, shape.n_kv));
    }
    for (const std::string& type : bench.host_types) {
        if (type != "f16" && bench.head_dim % 32 != 0)
            throw UsageError(
                fmt::format("--head-dim {}: the host's {} needs a multiple of 32; leave it out with "
                            "--host f16",
                            bench.head_dim, type));
    }
}

// What all sequences take together: a step is one ubatch, and llama.cpp counts cells in 32 bits.
void check_sequences(const BenchArguments& bench) {
    const std::int64_t n = *std::max_element(bench.n_parallel.begin(), bench.n_parallel.end());
    if (bench.n_prompt * n > kMaxStep)
        throw UsageError(fmt::format("--n-prompt {} and --n-parallel {}: {} tokens a step, at most {}",
                                     bench.n_prompt, n, bench.n_prompt * n, kMaxStep));
    if (bench.depths.back() * n > kMaxRows)
        throw UsageError(fmt::format("--depths {} and --n-parallel {}: {} tokens, at most {}",
                                     bench.depths.back(), n, bench.depths.back() * n, kMaxRows));
}

void finish_common(BenchArguments& bench, const Texts& texts) {
    texts.llama.use();
    if (int(texts.json) + int(texts.csv) + int(texts.markdown) > 1)
        throw UsageError("give one of --json, --csv and --md");
    bench.output = texts.json       ? OutputFormat::json
                   : texts.csv      ? OutputFormat::csv
                   : texts.markdown ? OutputFormat::markdown
                                    : OutputFormat::text;
    bench.html = texts.html;
    check_formats("--k", texts.k);
    check_formats("--v", texts.v);
    bench.k = texts.k;
    bench.v = texts.v;
    bench.n_threads = texts.threads ? *texts.threads : usable_cores();
    try {
        bench.isa = texts.isa.empty() ? active_kernel_set().name : kernel_set(texts.isa).name;
    } catch (const Error& error) {
        throw UsageError(texts.isa.empty() ? error.what() : std::string("--isa: ") + error.what());
    }
    for (const std::string& type : texts.host) {
        if (type == "none" && texts.host.size() == 1) return;
        if (std::find(kHostTypes.begin(), kHostTypes.end(), type) == kHostTypes.end())
            throw UsageError(
                fmt::format("--host: unknown type '{}', expected f16, q8_0, q4_0 or none", type));
        if (std::find(bench.host_types.begin(), bench.host_types.end(), type) == bench.host_types.end())
            bench.host_types.push_back(type);
    }
}

}  // namespace

std::vector<AttentionShape> BenchArguments::shapes() const {
    std::vector<AttentionShape> shapes;
    const auto& rows = mode == BenchMode::prefill ? depths : n_kv;
    for (const int sequences : n_seq) {
        for (const std::int64_t queries : n_q) {
            for (const std::int64_t n : rows) {
                AttentionShape shape;
                shape.head_dim = head_dim;
                shape.n_head = n_head;
                shape.n_head_kv = n_head_kv;
                shape.n_seq = sequences;
                shape.n_q = queries;
                shape.n_kv = mode == BenchMode::prefill ? n + queries : n;
                shape.n_hot = mode == BenchMode::prefill ? queries : n_hot;
                shapes.push_back(shape);
            }
        }
    }
    return shapes;
}

std::vector<std::pair<std::string, std::string>> BenchArguments::formats() const {
    std::vector<std::pair<std::string, std::string>> pairs;
    if (k.size() == v.size()) {
        for (std::size_t i = 0; i < k.size(); ++i) pairs.emplace_back(k[i], v[i]);
        return pairs;
    }
    for (const std::string& key : k) {
        for (const std::string& value : v) pairs.emplace_back(key, value);
    }
    return pairs;
}

std::optional<BenchArguments> parse_bench_arguments(int argc, char** argv) {
    BenchArguments attention, prefill, model, prompt;
    Texts attention_texts, prefill_texts, model_texts, prompt_texts;
    CommandLine command("mixed-kv-bench",
                        "Measures attention and whole models with the mixed KV cache beside llama.cpp's own "
                        "caches.");

    CommandLine& a = command.subcommand("attention", "Decode attention: few query rows over a long cache");
    attention.n_kv = {32768};
    attention.host_placements = prefill.host_placements = 3;
    attention_texts.k = attention_texts.v = {"q4"};
    add_shape(a, attention);
    a.option("--n-kv", attention.n_kv, "Cells per sequence").range(1, kMaxRows);
    a.option("--hot", attention.n_hot, "Newest rows of every sequence that are still FP16")
        .range(0, kMaxRows);
    add_common(a, attention, attention_texts);
    add_measuring(a, attention);

    CommandLine& p = command.subcommand(
        "prefill", "Prompt attention: a ubatch of query rows at a depth, its own rows hot");
    prefill.mode = BenchMode::prefill;
    prefill.n_q = {512};
    prefill.depths = {8192};
    prefill_texts.k = prefill_texts.v = {"q4"};
    add_shape(p, prefill);
    p.option("--depth", prefill.depths, "Cells before the ubatch").range(0, kMaxRows);
    add_common(p, prefill, prefill_texts);
    add_measuring(p, prefill);

    CommandLine& m = command.subcommand(
        "model", "Tokens per second of a model at context depths, generating or reading a prompt");
    model.mode = BenchMode::model;
    model.depths = {0, 4096, 32768};
    add_model(m, model, model_texts);
    m.option("--depths", model.depths, "Tokens in the cache before the measured ones").range(0, kMaxRows);
    m.option("--n-prompt", model.n_prompt,
             "Tokens of a step: 1 generates one by one, more is one ubatch of a prompt")
        .range(1, kMaxPrompt);
    m.option("-npl,--n-parallel", model.n_parallel,
             "sequences that take each step together, every number a row of its own")
        .range(1, kMaxParallel);
    m.flag("-kvu,--kv-unified", model.kv_unified,
           "sequences share one stream of cells, as in llama-server; else each has its own");
    m.option("--svg", model.svg, "Plot tokens per second against depth into this file").value_name("FILE");
    add_common(m, model, model_texts);
    add_measuring(m, model);

    CommandLine& w = command.subcommand(
        "prompt", "A whole prompt from an empty context, ubatch by ubatch, and the text after it");
    prompt.mode = BenchMode::prompt;
    prompt.n_prompt = 32768;
    prompt_texts.host = {"f16"};
    add_model(w, prompt, prompt_texts);
    w.option("--n-prompt", prompt.n_prompt, "Tokens of the prompt").range(1, int(kMaxRows));
    w.option("--n-ubatch", prompt.n_ubatch, "Tokens of a ubatch").range(1, kMaxPrompt);
    w.option("--n-gen", prompt.n_gen, "Tokens generated after it").range(0, 4096);
    w.option("--runs", prompt.n_runs, "Runs; medians of every ubatch are over these").range(1, 1000);
    w.option("--svg", prompt.svg, "Plot tokens per second of every ubatch into this file").value_name("FILE");
    add_common(w, prompt, prompt_texts);

    if (!command.parse(argc, argv)) return std::nullopt;
    const bool is_model = m.given(), is_prompt = w.given();
    BenchArguments& bench = a.given() ? attention : p.given() ? prefill : is_model ? model : prompt;
    finish_common(bench, a.given()   ? attention_texts
                         : p.given() ? prefill_texts
                         : is_model  ? model_texts
                                     : prompt_texts);
    if (is_model || is_prompt) {
        (void)Settings::from_environment();  // throws
    } else {
        check_shape(bench);
    }
    if (is_model) {
        std::sort(bench.depths.begin(), bench.depths.end());
        bench.depths.erase(std::unique(bench.depths.begin(), bench.depths.end()), bench.depths.end());
        check_sequences(bench);
        if (!bench.svg.empty() && bench.n_parallel.size() > 1)
            throw UsageError("--svg draws one number of sequences; give one --n-parallel");
    }
    return bench;
}

}  // namespace mixed_kv::tools
