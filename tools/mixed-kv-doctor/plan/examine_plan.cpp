// mixed-kv-doctor --plan: the sizing model for people and for tools.
#include "mixed-kv-doctor/plan/examine_plan.h"

#include <fmt/format.h>

#include <algorithm>

#include "mixed-kv-doctor/plan/machines.h"
#include "mixed-kv-doctor/plan/model_shape.h"

namespace mixed_kv::tools {

namespace {

constexpr double kMiB = 1024.0 * 1024.0;

std::string tensor_split(const Chain& chain) {
    std::string split;
    for (const Share& share : chain.shares)
        split += (split.empty() ? "" : ",") + std::to_string(share.items());
    return split;
}

void say_chain(const Chain& chain, Finding& finding) {
    nlohmann::ordered_json machines = nlohmann::ordered_json::array();
    for (const Share& share : chain.shares) {
        finding.lines.push_back(fmt::format(
            "  {}: {} layer{}{}, {:.0f} MiB of {:.0f}: weights {:.0f}, cache {:.0f} (F16 {:.0f}), compute "
            "{:.0f}; "
            "{:.2f} ms reading, {:.2f} ms network",
            share.machine->name, share.n_layers, share.n_layers == 1 ? "" : "s",
            share.has_output ? " and the output" : "", share.memory() / kMiB, share.machine->memory_mib,
            share.weights / kMiB, share.cache / kMiB, share.cache_f16 / kMiB, share.compute / kMiB,
            share.read_s * 1e3, share.network_s * 1e3));
        machines.push_back({{"name", share.machine->name},
                            {"layers", share.n_layers},
                            {"output", share.has_output},
                            {"weights_bytes", share.weights},
                            {"cache_bytes", share.cache},
                            {"cache_f16_bytes", share.cache_f16},
                            {"compute_bytes", share.compute},
                            {"read_ms", share.read_s * 1e3},
                            {"network_ms", share.network_s * 1e3}});
    }
    finding.facts["chains"].push_back({{"sequences", chain.sequences},
                                       {"tensor_split", tensor_split(chain)},
                                       {"step_ms", chain.step_s() * 1e3},
                                       {"machines", machines}});
}

// Why a plan does not fit: the chain with the most that is left over.
Problem no_room(const Plan& plan, const Load& load, int most) {
    int missing = 0;
    for (const Chain& chain : plan.chains) missing = std::max(missing, chain.missing_items);
    return {fmt::format(
                "{} sequence{} of {} tokens do{} not fit: no room for {} of the model's layers and output",
                load.sequences, load.sequences == 1 ? "" : "s", load.context, load.sequences == 1 ? "es" : "",
                missing),
            most > 0
                ? fmt::format("{} would fit; more machines or memory, a shorter context (-c) or a narrower "
                              "format (--kv-k, --kv-v) make room for more",
                              most)
                : "more machines or memory, or a smaller model"};
}

}  // namespace

void examine_plan(const PlanQuestion& question, Diagnosis& diagnosis) {
    const Settings settings = Settings::from_environment();
    const ModelShape model = read_model_shape(question.model);
    const std::vector<Machine> machines = read_machines(question.machines);
    Load load{question.context > 0 ? question.context : model.trained_context, question.sequences};
    if (load.context == 0) {
        throw std::runtime_error("the model '" + question.model +
                                 "' does not say what context it was trained for: give one with -c");
    }

    double weights = model.output_weights, cache = 0, f16 = 0;
    for (std::size_t i = 0; i < model.layers.size(); ++i) {
        const LayerCache layer = layer_cache(model, int(i), settings, load.context);
        weights += model.layers[i].weights;
        cache += layer.total();
        f16 += layer.f16;
    }
    Finding finding{.key = "plan", .heading = "plan"};
    finding.lines.push_back(
        fmt::format("{} layers, {:.0f} MiB of weights on the machines; a sequence of {} tokens takes {:.1f} "
                    "MiB (F16: {:.1f} MiB)",
                    model.layers.size(), weights / kMiB, load.context, cache / kMiB, f16 / kMiB));

    const Plan best = best_plan(model, settings, load, machines);
    const int n_best = int(best.chains.size());
    finding.facts = {{"fits", best.fits()},
                     {"context", load.context},
                     {"sequences", load.sequences},
                     {"weights_bytes", weights},
                     {"cache_bytes_per_sequence", cache},
                     {"cache_f16_bytes_per_sequence", f16},
                     {"tokens_per_second", best.tokens_per_second()},
                     {"chains", nlohmann::ordered_json::array()},
                     {"ways", nlohmann::ordered_json::array()}};
    for (const Chain& chain : best.fits() ? best.chains : std::vector<Chain>()) {
        finding.lines.push_back(
            fmt::format("{} sequence{} on {} machine{}, --tensor-split {}: a step takes at least {:.1f} ms",
                        chain.sequences, chain.sequences == 1 ? "" : "s", chain.shares.size(),
                        chain.shares.size() == 1 ? "" : "s", tensor_split(chain), chain.step_s() * 1e3));
        say_chain(chain, finding);
    }
    // One row for each number of chains side by side: what is won and what is lost by keeping the model more
    // often.
    for (int n = 1; n <= int(machines.size()); ++n) {
        const int most = most_sequences(model, settings, load.context, machines, n);
        if (most < n) continue;  // not one sequence for each
        const Plan plan = make_plan(model, settings, load, machines, n);
        const bool fits = plan.fits() && int(plan.chains.size()) == n;
        finding.lines.push_back(
            fmt::format("{} chain{}: {}, room for {} sequences{}", n, n == 1 ? "" : "s",
                        fits ? fmt::format("at most {:.1f} tokens/s", plan.tokens_per_second())
                             : std::string("not for so many sequences"),
                        most, n == n_best && best.fits() ? " <- the plan above" : ""));
        finding.facts["ways"].push_back({{"chains", n},
                                         {"fits", fits},
                                         {"tokens_per_second", fits ? plan.tokens_per_second() : 0.0},
                                         {"most_sequences", most}});
    }
    if (!best.fits()) {
        diagnosis.problems.push_back(
            no_room(best, load, most_sequences(model, settings, load.context, machines, 1)));
    }
    diagnosis.findings.push_back(std::move(finding));
}

}  // namespace mixed_kv::tools
