#include "mixed-kv-doctor/plan/sizing.h"

#include <algorithm>
#include <numeric>

namespace mixed_kv::tools {

namespace {

constexpr double kMiB = 1024.0 * 1024.0;

// Share of a machine's read bandwidth that is reached (docs/cluster.md says where the figures are from). Cold
// rows wait for arithmetic: a value takes about as long in every format.
constexpr double kWeightShare = 0.75;
constexpr double kExactShare = 0.6;
constexpr double kColdSecondsPerByteOfF16 = 0.95;  // of the time in which the bandwidth moves that byte

// What a server needs for a prompt's ubatch besides weights and cache.
constexpr double kUbatch = 512;
constexpr double kActivations = 12;  // rows of n_embd floats that live at once

constexpr int kMostSequences = 1 << 20;

// Bytes of the part of one tensor: n_rows rows of n_head heads, of which the window and the last page are
// exact.
void add_tensor(LayerCache& cache, KvRole role, const ColdFormat* format, int n_head, int head_dim,
                const Settings& settings, std::int64_t n_rows) {
    const double row = 2.0 * n_head * head_dim;
    const std::int64_t pages = (n_rows + kPageTokens - 1) / kPageTokens;
    const std::int64_t frozen =
        format == nullptr ? 0 : std::max<std::int64_t>(0, n_rows - settings.window) / kPageTokens;
    cache.f16 += row * double(n_rows);
    cache.exact += double(pages - frozen) * kPageTokens * row;
    if (frozen == 0) return;
    cache.cold += double(frozen) * double(format->block_bytes(role, head_dim)) * n_head;
    cache.exact += std::min<double>(settings.sinks, double(frozen) * kPageTokens) * row;
}

// The layers of a model and its output, with what each takes for a load.
class Items {
  public:
    Items(const ModelShape& model, const Settings& settings, const Load& load) : model_(model), load_(load) {
        const double used = std::min(1.0, model.experts_per_token * load.sequences);
        for (int layer = 0; layer < int(model.layers.size()); ++layer) {
            const LayerShape& shape = model.layers[std::size_t(layer)];
            const LayerCache cache = layer_cache(model, layer, settings, load.context);
            Share share;
            share.n_layers = 1;
            share.weights = shape.weights;
            share.cache = cache.total() * load.sequences;
            share.cache_f16 = cache.f16 * load.sequences;
            // In seconds on a machine that reads one byte per second.
            share.read_s =
                (shape.weights - (1 - used) * shape.expert_weights) / kWeightShare +
                load.sequences * (cache.exact / kExactShare +
                                  kColdSecondsPerByteOfF16 * std::max(0.0, cache.f16 - cache.exact));
            items_.push_back(share);
        }
        Share output;
        output.has_output = true;
        output.weights = model.output_weights;
        output.compute = 4 * kUbatch * double(model.n_vocab);
        output.read_s = model.output_weights / kWeightShare;
        items_.push_back(output);
    }

    std::size_t size() const noexcept { return items_.size(); }

    // Gives a machine items from `next` on, as many as fit.
    Share fill(const Machine& machine, std::size_t& next) const {
        Share share;
        share.machine = &machine;
        share.compute = kUbatch * (4 * kActivations * double(model_.n_embd) + 2 * double(load_.context));
        for (; next < items_.size(); ++next) {
            const Share& item = items_[next];
            if (share.memory() + item.memory() > machine.memory_mib * kMiB) break;
            share.n_layers += item.n_layers;
            share.has_output = share.has_output || item.has_output;
            share.weights += item.weights;
            share.cache += item.cache;
            share.cache_f16 += item.cache_f16;
            share.compute += item.compute;
            share.read_s += item.read_s;
        }
        share.read_s /= machine.gb_s * 1e9;
        share.network_s = machine.latency_ms * 1e-3 + 8 * traffic(share) / (machine.link_mbit * 1e6);
        return share;
    }

  private:
    // Bytes between client and server in one step: each sequence's row of activations in and out, its row of
    // the attention mask, and from the last machine its logits instead.
    double traffic(const Share& share) const noexcept {
        const double out = share.has_output ? 4.0 * double(model_.n_vocab) : 4.0 * double(model_.n_embd);
        return load_.sequences * (4.0 * double(model_.n_embd) + out + 2.0 * double(load_.context));
    }

    const ModelShape& model_;
    const Load& load_;
    std::vector<Share> items_;
};

}  // namespace

LayerCache layer_cache(const ModelShape& model, int layer, const Settings& settings, std::int64_t n_rows) {
    const LayerShape& shape = model.layers[std::size_t(layer)];
    LayerCache cache;
    if (shape.n_head_kv == 0) return cache;
    const int n_layers = int(model.layers.size());
    add_tensor(cache, KvRole::key, settings.format(KvRole::key, layer, n_layers), shape.n_head_kv,
               shape.head_dim_k, settings, n_rows);
    if (shape.head_dim_v > 0) {
        add_tensor(cache, KvRole::value, settings.format(KvRole::value, layer, n_layers), shape.n_head_kv,
                   shape.head_dim_v, settings, n_rows);
    }
    return cache;
}

double Chain::step_s() const noexcept {
    return std::accumulate(shares.begin(), shares.end(), 0.0, [](double sum, const Share& share) {
        return sum + share.read_s + share.network_s;
    });
}

bool Plan::fits() const noexcept {
    return std::all_of(chains.begin(), chains.end(),
                       [](const Chain& chain) { return chain.missing_items == 0; });
}

double Plan::tokens_per_second() const noexcept {
    return std::accumulate(chains.begin(), chains.end(), 0.0, [](double sum, const Chain& chain) {
        return chain.missing_items > 0 ? sum : sum + chain.sequences / chain.step_s();
    });
}

// The fastest machines come first, so that as few as possible are in the way of a token; chains get one each
// in turn.
Plan make_plan(const ModelShape& model, const Settings& settings, const Load& load,
               const std::vector<Machine>& machines, int n_chains) {
    std::vector<const Machine*> by_speed;
    for (const Machine& machine : machines) by_speed.push_back(&machine);
    std::stable_sort(by_speed.begin(), by_speed.end(),
                     [](const Machine* a, const Machine* b) { return a->gb_s > b->gb_s; });

    Plan plan;
    for (int c = 0; c < n_chains; ++c) {
        Load part = load;
        part.sequences = load.sequences / n_chains + (c < load.sequences % n_chains ? 1 : 0);
        if (part.sequences == 0) continue;
        const Items items(model, settings, part);
        Chain chain;
        chain.sequences = part.sequences;
        std::size_t next = 0;
        for (std::size_t m = std::size_t(c); m < by_speed.size() && next < items.size();
             m += std::size_t(n_chains)) {
            const Share share = items.fill(*by_speed[m], next);
            if (share.items() > 0) chain.shares.push_back(share);
        }
        chain.missing_items = int(items.size() - next);
        plan.chains.push_back(chain);
    }
    return plan;
}

Plan best_plan(const ModelShape& model, const Settings& settings, const Load& load,
               const std::vector<Machine>& machines) {
    Plan best = make_plan(model, settings, load, machines, 1);
    for (int n = 2; n <= std::min(int(machines.size()), load.sequences); ++n) {
        Plan plan = make_plan(model, settings, load, machines, n);
        const bool better = plan.tokens_per_second() > best.tokens_per_second();
        if (plan.fits() && (better || !best.fits())) best = std::move(plan);
    }
    return best;
}

int most_sequences(const ModelShape& model, const Settings& settings, std::int64_t context,
                   const std::vector<Machine>& machines, int n_chains) {
    const auto fits = [&](int sequences) {
        return make_plan(model, settings, {context, sequences}, machines, n_chains).fits();
    };
    int most = 0;
    for (int step = kMostSequences; step > 0; step /= 2) {
        if (fits(most + step)) most += step;
    }
    return most;
}

}  // namespace mixed_kv::tools
