#include "mixed-kv-eval/evaluation.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <utility>

#include "mixed-kv-eval/progress_file.h"

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

// One candidate beside the reference. Its context exists while it has something to do.
struct Candidate {
    Configuration configuration;
    std::unique_ptr<EvaluatedCache> cache;
    ChunkResult sum;
    std::vector<Divergence> contexts;

    void append(const ChunkResult& chunk) {
        contexts.push_back(chunk.divergence);
        sum.divergence.append(chunk.divergence);
        sum.bits_sum += chunk.bits_sum;
        sum.n_bits += chunk.n_bits;
        sum.kv_bytes = chunk.kv_bytes;
        sum.cold = sum.cold || chunk.cold;
    }
};

constexpr const char* kNoise = "noise floor";  // the reference again, through other kernels

// What the results depend on besides the configuration and the number of the context.
std::string progress_key(const EvaluationOptions& options, const llama_model* model,
                         const std::vector<llama_token>& tokens) {
    std::uint64_t hash = 14695981039346656037u;  // FNV-1a
    const auto mix = [&hash](std::uint64_t x) { hash = (hash ^ x) * 1099511628211u; };
    for (const llama_token token : tokens) mix(std::uint64_t(token));
    mix(llama_model_n_params(model));
    mix(llama_model_size(model));
    char text[128] = "";
    llama_model_desc(model, text, sizeof text);
    return fmt::format("{} {:016x} -c {} --ubatch {}", text, hash, options.n_ctx, options.n_ubatch);
}

}  // namespace

Evaluation evaluate(const std::vector<Configuration>& configurations, const Plugin& plugin,
                    llama_model* host_model, llama_model* plugin_model,
                    const std::vector<llama_token>& tokens, const EvaluationOptions& options,
                    const std::function<void(int, int)>& progress) {
    const llama_vocab* vocab = llama_model_get_vocab(plugin_model);
    const auto n_vocab = std::size_t(llama_vocab_n_tokens(vocab));
    llama_token bos = llama_vocab_bos(vocab);
    if (bos == LLAMA_TOKEN_NULL) bos = llama_vocab_eos(vocab);  // some vocabularies know none
    const int stride = options.n_ctx - 1;                       // each context begins with BOS
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
    std::unique_ptr<EvaluatedCache> reference;
    ProgressFile progress_file(options.progress_path, progress_key(options, plugin_model, tokens));
    std::vector<Candidate> candidates;
    for (const Configuration& c : configurations) candidates.push_back({c, nullptr, {}, {}});
    candidates.push_back({parse_configuration("f16:scalar"), nullptr, {}, {}});
    candidates.back().configuration.name = kNoise;

    std::vector<double> p, q;
    std::vector<llama_token> chunk;
    for (int c = 0; c < n_chunks; ++c) {
        const auto begin = tokens.begin() + std::ptrdiff_t(c) * stride;
        chunk.assign(1, bos);
        chunk.insert(chunk.end(), begin,
                     begin + stride + 1);  // one more than the context: the last one's successor
        std::vector<Candidate*> running;
        for (Candidate& candidate : candidates) {
            const std::string& name = candidate.configuration.name;
            if (name == kNoise && c >= options.noise_floor_chunks) continue;
            if (const ChunkResult* done = progress_file.find(name, c)) {
                candidate.append(*done);
            } else {
                running.push_back(&candidate);
                if (!candidate.cache) candidate.cache = make(candidate.configuration);
            }
        }
        if (running.empty()) {
            progress(c + 1, n_chunks);
            continue;
        }
        if (!reference) reference = make(parse_configuration("f16"));

        std::vector<ChunkResult> results(running.size());
        llama_memory_clear(reference->context().memory(), true);
        for (Candidate* candidate : running) llama_memory_clear(candidate->cache->context().memory(), true);
        for (int first = 0; first < options.n_ctx; first += options.n_ubatch) {
            const int n = std::min(options.n_ubatch, options.n_ctx - first);
            for (std::size_t i = 0; i < running.size(); ++i) {
                // What this ubatch attends to beside its own rows.
                if (first + n > options.n_ctx / 2 && running[i]->cache->has_cold_rows())
                    results[i].cold = true;
            }
            decode_all(reference->context().get(), chunk.data() + first, n, first);
            const int first_scored = std::max(first, options.n_ctx / 2);
            const int n_scored = std::max(0, first + n - first_scored);
            for (std::size_t i = 0; i < running.size(); ++i) {
                llama_context* context = running[i]->cache->context().get();
                decode_all(context, chunk.data() + first, n, first);
                for (int position = first_scored; position < first + n; ++position) {
                    log_softmax(llama_get_logits_ith(reference->context().get(), position - first), n_vocab,
                                p);
                    log_softmax(llama_get_logits_ith(context, position - first), n_vocab, q);
                    results[i].divergence.add(p, q, chunk[std::size_t(position) + 1]);
                }
                if (n_scored > 0) {
                    results[i].bits_sum += running[i]->cache->bits_per_value() * n_scored;
                    results[i].n_bits += std::size_t(n_scored);
                }
            }
        }
        for (std::size_t i = 0; i < running.size(); ++i) {
            results[i].kv_bytes = running[i]->cache->kv_bytes();
            progress_file.add(running[i]->configuration.name, c, results[i]);
            running[i]->append(results[i]);
        }
        progress(c + 1, n_chunks);
    }

    Evaluation evaluation;
    for (Candidate& candidate : candidates) {
        Result r;
        r.name = candidate.configuration.name;
        r.divergence = candidate.sum.divergence.summary();
        r.bits_per_value = candidate.sum.bits_sum / double(std::max<std::size_t>(1, candidate.sum.n_bits));
        r.kv_bytes = candidate.sum.kv_bytes;
        r.n_chunks = n_chunks;
        r.cold = candidate.sum.cold;
        r.has_window = candidate.configuration.has_window();
        r.contexts = std::move(candidate.contexts);
        if (r.name == kNoise) {
            evaluation.noise_floor = r.divergence.kld_mean;
            continue;
        }
        evaluation.n_scored = r.divergence.n;
        evaluation.results.push_back(r);
    }
    return evaluation;
}

}  // namespace mixed_kv::tools
