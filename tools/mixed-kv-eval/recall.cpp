#include "mixed-kv-eval/recall.h"

#include <fmt/format.h>

#include <algorithm>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <stdexcept>

namespace mixed_kv::tools {

namespace {

struct Ask {
    int position, distance;
    llama_token answer;
};
struct RecallContext {
    std::vector<llama_token> tokens;
    std::vector<Ask> asks;
};

std::vector<RecallContext> read_contexts(const std::string& path, const llama_vocab* vocab, int n_ctx) {
    std::ifstream file(path);
    if (!file) throw std::runtime_error(fmt::format("cannot open {}", path));
    std::vector<RecallContext> contexts;
    int number = 0;
    for (std::string line; std::getline(file, line);) {
        ++number;
        try {
            const auto json = nlohmann::json::parse(line);
            RecallContext context;
            context.tokens = tokenize(vocab, json.at("text").get<std::string>());
            if (int(context.tokens.size()) != json.at("n_tokens").get<int>()) {
                throw std::runtime_error(
                    fmt::format("tokenizes to {} tokens instead of {}: another model's test",
                                context.tokens.size(), json.at("n_tokens").get<int>()));
            }
            for (const auto& ask : json.at("asks")) {
                context.asks.push_back({ask.at("ask_token").get<int>(), ask.at("distance").get<int>(),
                                        ask.at("answer_id").get<llama_token>()});
            }
            if (int(context.tokens.size()) > n_ctx) {
                throw std::runtime_error(
                    fmt::format("has {} tokens, the context {}", context.tokens.size(), n_ctx));
            }
            contexts.push_back(std::move(context));
        } catch (const std::exception& e) {
            throw std::runtime_error(fmt::format("{} line {}: {}", path, number, e.what()));
        }
    }
    if (contexts.empty()) throw std::runtime_error(fmt::format("{} holds no contexts", path));
    return contexts;
}

}  // namespace

std::vector<RecallResult> recall(const std::vector<Configuration>& configurations, const Plugin& plugin,
                                 llama_model* host_model, llama_model* plugin_model, const std::string& path,
                                 int n_ctx, int n_ubatch, int n_threads, int max_contexts,
                                 const std::function<void(int, int)>& progress) {
    const llama_vocab* vocab = llama_model_get_vocab(plugin_model);
    const int n_vocab = llama_vocab_n_tokens(vocab);
    auto contexts = read_contexts(path, vocab, n_ctx);
    if (max_contexts > 0 && int(contexts.size()) > max_contexts) contexts.resize(std::size_t(max_contexts));
    int longest = 1;
    for (const auto& c : contexts) {
        for (const Ask& ask : c.asks) longest = std::max(longest, ask.distance);
    }

    std::vector<RecallResult> results;
    int done = 0;
    for (const Configuration& configuration : configurations) {
        ContextOptions options;
        options.n_ctx = std::uint32_t(n_ctx);
        options.n_batch = options.n_ubatch = std::uint32_t(n_ubatch);
        options.n_threads = options.n_threads_batch = n_threads;
        options.polling_pool = false;
        EvaluatedCache cache(configuration, plugin, host_model, plugin_model, options);
        RecallResult result;
        result.name = configuration.name;
        for (const auto& context : contexts) {
            llama_memory_clear(cache.context().memory(), true);
            std::map<int, const Ask*> at;
            for (const Ask& ask : context.asks) at[ask.position] = &ask;
            for (int first = 0; first < int(context.tokens.size()); first += n_ubatch) {
                const int n = std::min(n_ubatch, int(context.tokens.size()) - first);
                llama_batch batch = llama_batch_init(n, 0, 1);
                batch.n_tokens = n;
                for (int i = 0; i < n; ++i) {
                    batch.token[i] = context.tokens[std::size_t(first + i)];
                    batch.pos[i] = first + i;
                    batch.n_seq_id[i] = 1;
                    batch.seq_id[i][0] = 0;
                    batch.logits[i] = at.count(first + i) != 0;
                }
                const int status = llama_decode(cache.context().get(), batch);
                llama_batch_free(batch);
                if (status != 0)
                    throw std::runtime_error(fmt::format("llama_decode failed with status {}", status));
                for (int i = 0; i < n; ++i) {
                    const auto found = at.find(first + i);
                    if (found == at.end()) continue;
                    const Ask& ask = *found->second;
                    const float* logits = llama_get_logits_ith(cache.context().get(), i);
                    const bool right = std::max_element(logits, logits + n_vocab) - logits == ask.answer;
                    const int quarter = std::min(3, 4 * ask.distance / (longest + 1));
                    ++result.n;
                    ++result.n_by_quarter[quarter];
                    result.right += right;
                    result.right_by_quarter[quarter] += right;
                }
            }
        }
        results.push_back(result);
        progress(++done, int(configurations.size()));
    }
    return results;
}

}  // namespace mixed_kv::tools
