#include "mixed-kv-eval/evaluation.h"

#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <stdexcept>

namespace mixed_kv::tools {

namespace {

// Decodes tokens at positions first .. of sequence 0 with logits for all of them.
void decode_all(llama_context* context, const llama_token* tokens, int n, int first) {
    llama_batch batch = llama_batch_init(n, 0, 1);
    batch.n_tokens = n;
    for (int i = 0; i < n; ++i) {
        batch.token[i] = tokens[i];
        batch.pos[i] = first + i;
        batch.n_seq_id[i] = 1;
        batch.seq_id[i][0] = 0;
        batch.logits[i] = 1;
    }
    const int status = llama_decode(context, batch);
    llama_batch_free(batch);
    if (status != 0) throw std::runtime_error(fmt::format("llama_decode failed with status {}", status));
}

// One candidate beside the reference.
struct Candidate {
    std::unique_ptr<EvaluatedCache> cache;
    Divergence divergence;
    double bits_sum = 0;
    std::size_t n_bits = 0;
    double kv_bytes = 0;
};

}  // namespace

Evaluation evaluate(const std::vector<Configuration>& configurations, const Plugin& plugin,
                    llama_model* host_model, llama_model* plugin_model,
                    const std::vector<llama_token>& tokens, const EvaluationOptions& options,
                    const std::function<void(int, int)>& progress) {
    const llama_vocab* vocab = llama_model_get_vocab(plugin_model);
    const auto n_vocab = std::size_t(llama_vocab_n_tokens(vocab));
    const llama_token bos = llama_vocab_bos(vocab);
    const int stride = options.n_ctx - 1;  // each context begins with BOS
    int n_chunks = (int(tokens.size()) - 1) / stride;
    if (options.max_chunks > 0) n_chunks = std::min(n_chunks, options.max_chunks);
    if (n_chunks < 1) {
        throw std::runtime_error(
            fmt::format("the text has {} tokens; one context needs {}", tokens.size(), stride + 1));
    }

    ContextOptions context_options;
    context_options.n_ctx = std::uint32_t(options.n_ctx);
    context_options.n_batch = context_options.n_ubatch = std::uint32_t(options.n_ubatch);
    context_options.n_threads = context_options.n_threads_batch = options.n_threads;
    context_options.polling_pool = false;  // many contexts would poll against each other
    const auto make = [&](const Configuration& c) {
        return std::make_unique<EvaluatedCache>(c, plugin, host_model, plugin_model, context_options);
    };
    const auto reference = make(parse_configuration("f16"));
    std::vector<Candidate> candidates(configurations.size());
    for (std::size_t i = 0; i < configurations.size(); ++i) candidates[i].cache = make(configurations[i]);
    Candidate noise;
    noise.cache = make(parse_configuration("f16:scalar"));

    std::vector<double> p, q;
    std::vector<llama_token> chunk;
    for (int c = 0; c < n_chunks; ++c) {
        const auto begin = tokens.begin() + std::ptrdiff_t(c) * stride;
        chunk.assign(1, bos);
        chunk.insert(chunk.end(), begin,
                     begin + stride + 1);  // one more than the context: the last one's successor
        std::vector<Candidate*> running;
        for (Candidate& candidate : candidates) running.push_back(&candidate);
        if (c < options.noise_floor_chunks) running.push_back(&noise);

        llama_memory_clear(reference->context().memory(), true);
        for (Candidate* candidate : running) llama_memory_clear(candidate->cache->context().memory(), true);
        for (int first = 0; first < options.n_ctx; first += options.n_ubatch) {
            const int n = std::min(options.n_ubatch, options.n_ctx - first);
            decode_all(reference->context().get(), chunk.data() + first, n, first);
            const int first_scored = std::max(first, options.n_ctx / 2);
            for (Candidate* candidate : running) {
                llama_context* context = candidate->cache->context().get();
                decode_all(context, chunk.data() + first, n, first);
                for (int position = first_scored; position < first + n; ++position) {
                    log_softmax(llama_get_logits_ith(reference->context().get(), position - first), n_vocab,
                                p);
                    log_softmax(llama_get_logits_ith(context, position - first), n_vocab, q);
                    candidate->divergence.add(p, q, chunk[std::size_t(position) + 1]);
                }
                if (first + n > first_scored) {
                    candidate->bits_sum += candidate->cache->bits_per_value() * (first + n - first_scored);
                    candidate->n_bits += std::size_t(first + n - first_scored);
                }
            }
        }
        for (Candidate* candidate : running) candidate->kv_bytes = candidate->cache->kv_bytes();
        progress(c + 1, n_chunks);
    }

    Evaluation evaluation;
    evaluation.noise_floor = noise.divergence.summary().kld_mean;
    for (const Candidate& candidate : candidates) {
        Result r;
        r.name = candidate.cache->name();
        r.divergence = candidate.divergence.summary();
        r.bits_per_value = candidate.bits_sum / double(std::max<std::size_t>(1, candidate.n_bits));
        r.kv_bytes = candidate.kv_bytes;
        r.n_chunks = n_chunks;
        evaluation.n_scored = r.divergence.n;
        evaluation.results.push_back(r);
    }
    return evaluation;
}

}  // namespace mixed_kv::tools
