#include "mixed-kv-eval/greedy.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>
#include <stdexcept>

namespace mixed_kv::tools {

namespace {

llama_token best(const Context& context, int n_vocab) {
    const float* logits = llama_get_logits_ith(context.get(), -1);
    return llama_token(std::max_element(logits, logits + n_vocab) - logits);
}

std::vector<llama_token> continuation(Context& context, const std::vector<llama_token>& prompt, int n_batch,
                                      int n_tokens, int n_vocab) {
    llama_memory_clear(context.memory(), true);
    for (std::size_t first = 0; first < prompt.size(); first += std::size_t(n_batch)) {
        context.decode(prompt.data() + first, std::min(n_batch, int(prompt.size() - first)));
    }
    std::vector<llama_token> result;
    while (int(result.size()) < n_tokens) {
        result.push_back(best(context, n_vocab));
        if (int(result.size()) < n_tokens) context.decode(&result.back(), 1);
    }
    return result;
}

}  // namespace

double GreedyResult::mean() const {
    return same.empty() ? 0 : std::accumulate(same.begin(), same.end(), 0.0) / double(same.size());
}

std::vector<GreedyResult> greedy_divergence(const std::vector<Configuration>& configurations,
                                            const Plugin& plugin, llama_model* host_model,
                                            llama_model* plugin_model, const std::vector<llama_token>& tokens,
                                            const ContextOptions& options, int n_prompts, int n_tokens,
                                            const std::function<void(int, int)>& progress) {
    const llama_vocab* vocab = llama_model_get_vocab(plugin_model);
    const int n_vocab = llama_vocab_n_tokens(vocab);
    const int length = int(options.n_ctx) / 2;
    if (n_tokens > int(options.n_ctx) - length) {
        throw std::runtime_error(
            fmt::format("--greedy {}: prompts take half of the context of {}", n_tokens, options.n_ctx));
    }
    if (int(tokens.size()) < n_prompts * length) {
        throw std::runtime_error(fmt::format("the text has {} tokens; {} prompts need {}", tokens.size(),
                                             n_prompts, n_prompts * length));
    }
    const auto run = [&](const Configuration& configuration) {
        EvaluatedCache cache(configuration, plugin, host_model, plugin_model, options);
        std::vector<std::vector<llama_token>> texts;
        for (int i = 0; i < n_prompts; ++i) {
            const auto begin = tokens.begin() + std::ptrdiff_t(i) * length;
            texts.push_back(continuation(cache.context(), {begin, begin + length}, int(options.n_batch),
                                         n_tokens, n_vocab));
        }
        return texts;
    };
    const int n_runs = int(configurations.size()) + 1;
    const auto reference = run(parse_configuration("f16"));
    progress(1, n_runs);
    std::vector<GreedyResult> results;
    for (const Configuration& configuration : configurations) {
        GreedyResult result;
        result.name = configuration.name;
        const auto texts = run(configuration);
        for (std::size_t i = 0; i < texts.size(); ++i) {
            const auto differs = std::mismatch(texts[i].begin(), texts[i].end(), reference[i].begin()).first;
            result.same.push_back(int(differs - texts[i].begin()));
        }
        results.push_back(result);
        progress(int(results.size()) + 1, n_runs);
    }
    return results;
}

}  // namespace mixed_kv::tools
