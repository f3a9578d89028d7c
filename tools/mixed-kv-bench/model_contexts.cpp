#include "mixed-kv-bench/model_contexts.h"

#include <fmt/format.h>

#include <stdexcept>

#include "common/command_line.h"
#include "common/resident_memory.h"

namespace mixed_kv::tools {

ModelPair::ModelPair(const BenchArguments& arguments) : plugin_(load_plugin()), pool_(arguments.n_threads) {
    if (arguments.k.size() != 1 || arguments.v.size() != 1)
        throw UsageError("whole models: give one --k and one --v");
    const std::string settings =
        fmt::format("k={},v={},window={},sinks={},isa={}", arguments.k.front(), arguments.v.front(),
                    arguments.window, arguments.sinks, arguments.isa);
    char error[256] = "";
    if (plugin_.api().configure(settings.c_str(), error, sizeof error) == 0) throw UsageError(error);
    ours_ = load_model({arguments.model, CacheOwner::plugin, plugin_.device()});
    if (!arguments.host_types.empty()) host_ = load_model({arguments.model, CacheOwner::host});
}

std::string ModelPair::description() const {
    char text[128] = "";
    llama_model_desc(ours_.get(), text, sizeof text);
    return text;
}

std::uint64_t ModelPair::our_cache_bytes() const {
    const mixed_kv_counters c = plugin_.counters();
    return c.hot_bytes + c.cold_bytes + c.overlay_bytes + c.pinned_bytes;
}

void ModelPair::check_memory(const BenchArguments& arguments, std::int64_t n_ctx,
                             std::int64_t state_tokens) const {
    const llama_model* model = ours_.get();
    const int n_head = llama_model_n_head(model);
    if (n_head == 0) return;
    const double row = 2.0 * llama_model_n_layer(model) * llama_model_n_head_kv(model) *
                       (double(llama_model_n_embd(model)) / n_head);
    // All in FP16.
    const double n_contexts = 1.0 + double(arguments.host_types.size()) * arguments.host_placements;
    const double needed = row * 2 * (n_contexts * double(n_ctx) + double(state_tokens));
    if (needed > double(available_memory_bytes())) {
        throw std::runtime_error(
            fmt::format("contexts of {} tokens need about {} MiB and {} are available; fewer tokens or "
                        "sequences, --host with fewer types, or --host-placements 1 take less",
                        n_ctx, std::uint64_t(needed) >> 20, available_memory_bytes() >> 20));
    }
}

std::vector<ModelPair::NamedContext> ModelPair::open_contexts(ContextOptions options,
                                                              const BenchArguments& arguments) const {
    options.n_threads = options.n_threads_batch = arguments.n_threads;
    options.shared_pool = pool_.get();
    options.flash_attention = LLAMA_FLASH_ATTN_TYPE_ENABLED;
    std::vector<NamedContext> contexts;
    contexts.push_back({"ours", std::make_unique<Context>(ours_.get(), options)});
    for (const std::string& type : arguments.host_types) {
        options.type_k = options.type_v = *cache_type_from_name(type);
        for (int i = 0; i < arguments.host_placements; ++i)
            contexts.push_back({type, std::make_unique<Context>(host_.get(), options)});
    }
    return contexts;
}

std::vector<llama_token> some_tokens(std::size_t n, std::int32_t n_vocab) {
    std::vector<llama_token> tokens(n);
    for (std::size_t i = 0; i < n; ++i) tokens[i] = llama_token((i * 7919 + 11) % std::size_t(n_vocab));
    return tokens;
}

}  // namespace mixed_kv::tools
