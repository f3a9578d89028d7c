#include "mixed-kv-bench/prompt_bench.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <map>
#include <stdexcept>

#include "common/llama_log.h"
#include "common/resident_memory.h"
#include "mixed-kv-bench/model_contexts.h"

namespace mixed_kv::tools {

namespace {

constexpr int kWarmUpTokens = 2;  // of Context::warm_up(), in one batch

struct Contestant {
    ModelPair::NamedContext named;
    std::vector<std::vector<double>> seconds;  // [ubatch][run]
    std::vector<double> prompt_seconds = {}, generation_rates = {};
    std::string text = {};

    Context& context() const { return *named.context; }
};

double seconds_of(Context& context, const llama_token* tokens, int n) {
    const auto begin = std::chrono::steady_clock::now();
    context.decode(tokens, n);
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

// n_gen tokens from the logits of the prompt's last one.
void generate(Contestant& c, const llama_vocab* vocab, int n_gen) {
    const SamplerHandle sampler = make_sampler(0, 0);
    std::string text;
    for (int i = 0; i < n_gen; ++i) {
        const llama_token token = llama_sampler_sample(sampler.get(), c.context().get(), -1);
        text += piece(vocab, token);
        c.generation_rates.push_back(1 / seconds_of(c.context(), &token, 1));
    }
    if (c.text.empty()) c.text = text;
}

void check_context(const llama_model* model, const BenchArguments& arguments) {
    const std::int64_t needed = std::int64_t(arguments.n_prompt) + arguments.n_gen;
    const std::int64_t trained = llama_model_n_ctx_train(model);
    if (needed > trained) {
        throw std::runtime_error(fmt::format(
            "--n-prompt {} and --n-gen {} need a context of {} tokens, and this model was trained "
            "for {}",
            arguments.n_prompt, arguments.n_gen, needed, trained));
    }
}

// A model whose state the plugin leaves to the host (recurrent), or pins, would compare the host with itself.
void check_mixed(const Plugin& plugin) {
    const std::vector<mixed_kv_tensor_info> tensors = plugin.tensors();
    const auto mixed = std::count_if(tensors.begin(), tensors.end(),
                                     [](const mixed_kv_tensor_info& info) { return info.mixed != 0; });
    if (mixed > 0) return;
    throw std::runtime_error("the mixed cache holds nothing of this model" +
                             (tensors.empty() ? std::string(": it has no K and V cache")
                                              : fmt::format(": {}", tensors.front().reason)));
}

PromptReader reader_of(const Contestant& c) {
    return {spread_of(c.prompt_seconds), spread_of(c.generation_rates), c.text};
}

}  // namespace

PromptReport run_prompt_bench(const BenchArguments& arguments) {
    PromptReport report;
    report.machine = describe_machine(arguments);
    report.model = arguments.model;
    report.n_prompt = arguments.n_prompt;
    report.n_ubatch = arguments.n_ubatch;
    report.n_runs = arguments.n_runs;
    report.n_gen = arguments.n_gen;
    report.window = arguments.window;
    report.sinks = arguments.sinks;

    const ModelPair models(arguments);
    report.k = arguments.k.front();
    report.v = arguments.v.front();
    report.description = models.description();
    report.weight_bytes = models.weight_bytes();
    check_context(models.ours(), arguments);
    ContextOptions options;
    options.n_ctx = std::uint32_t(std::max(arguments.n_prompt + arguments.n_gen, kWarmUpTokens));
    options.n_batch = std::uint32_t(std::max(arguments.n_ubatch, kWarmUpTokens));
    options.n_ubatch = std::uint32_t(arguments.n_ubatch);
    models.check_memory(arguments, options.n_ctx, 0);
    const int n_ubatches = (arguments.n_prompt + arguments.n_ubatch - 1) / arguments.n_ubatch;
    std::vector<Contestant> contestants;
    for (ModelPair::NamedContext& context : models.open_contexts(options, arguments))
        contestants.push_back(
            {std::move(context), std::vector<std::vector<double>>(std::size_t(n_ubatches))});

    const std::vector<llama_token> tokens = some_tokens(std::size_t(arguments.n_prompt), models.n_vocab());
    for (const Contestant& c : contestants) c.context().warm_up(models.vocab());
    check_mixed(models.plugin());
    for (int run = 0; run < arguments.n_runs; ++run) {
        for (Contestant& c : contestants) {
            llama_memory_clear(c.context().memory(), true);
            c.prompt_seconds.push_back(0);
        }
        for (int u = 0; u < n_ubatches; ++u) {
            const int first = u * arguments.n_ubatch;
            const int n = std::min(arguments.n_ubatch, arguments.n_prompt - first);
            // Always in this order: each finds the CPU's caches as another has left them, never as it left
            // them itself.
            for (Contestant& c : contestants) {
                const double seconds = seconds_of(c.context(), tokens.data() + first, n);
                c.seconds[std::size_t(u)].push_back(seconds);
                c.prompt_seconds.back() += seconds;
            }
        }
        report.kv_bytes = models.our_cache_bytes();
        for (Contestant& c : contestants) generate(c, models.vocab(), arguments.n_gen);
    }
    if (const std::vector<std::string> said = take_logged_errors(); !said.empty())
        throw std::runtime_error(said.front());
    report.peak_resident_bytes = process_peak_resident_bytes();

    // Of the host's contexts of one type the one whose prompts took least.
    std::map<std::string, const Contestant*> host;
    for (std::size_t i = 1; i < contestants.size(); ++i) {
        const Contestant& c = contestants[i];
        const Contestant*& best = host[c.named.name];
        if (best == nullptr || spread_of(c.prompt_seconds).median < spread_of(best->prompt_seconds).median)
            best = &c;
    }
    for (int u = 0; u < n_ubatches; ++u) {
        const int first = u * arguments.n_ubatch;
        PromptUbatch result;
        result.depth = first;
        result.n_tokens = std::min(arguments.n_ubatch, arguments.n_prompt - first);
        result.seconds = spread_of(contestants.front().seconds[std::size_t(u)]);
        for (const auto& [type, c] : host) result.host[type] = spread_of(c->seconds[std::size_t(u)]);
        report.ubatches.push_back(std::move(result));
    }
    report.ours = reader_of(contestants.front());
    for (const auto& [type, c] : host) report.host[type] = reader_of(*c);
    return report;
}

}  // namespace mixed_kv::tools
