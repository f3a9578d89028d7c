#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "common/llama_handles.h"
#include "mixed-kv-bench/attention_bench.h"
#include "mixed-kv-bench/host_runtime.h"

// What the modes that run whole models share.
namespace mixed_kv::tools {

// One model, loaded twice: with the plugin's cache and with the host's own.
class ModelPair {
  public:
    // Settings of our cache are the arguments' formats, window and sinks. Throws UsageError for those that
    // the plugin refuses, std::runtime_error when the model does not load.
    explicit ModelPair(const BenchArguments& arguments);

    const Plugin& plugin() const { return plugin_; }
    llama_model* ours() const { return ours_.get(); }
    const llama_vocab* vocab() const { return llama_model_get_vocab(ours_.get()); }
    std::int32_t n_vocab() const { return llama_vocab_n_tokens(vocab()); }
    std::string description() const;
    std::uint64_t weight_bytes() const { return llama_model_size(ours_.get()); }
    // Of the plugin's caches, as they are stored now.
    std::uint64_t our_cache_bytes() const;

    // Throws std::runtime_error when memory would not hold contexts of n_ctx tokens for ours and all host
    // types, and beside them one saved state of state_tokens.
    void check_memory(const BenchArguments& arguments, std::int64_t n_ctx, std::int64_t state_tokens) const;

    struct NamedContext {
        std::string name;  // host type, or "ours"
        std::unique_ptr<Context> context;
    };
    // Ours first, then arguments.host_placements for each host type, all on one thread pool: where a host's
    // cache happens to lie may decide how fast it is, and its fastest counts. options: without types. Throws
    // std::runtime_error when one of them fails.
    std::vector<NamedContext> open_contexts(ContextOptions options, const BenchArguments& arguments) const;

  private:
    Plugin plugin_;
    ModelHandle ours_, host_;
    ThreadPool pool_;
};

// Always the same ones.
std::vector<llama_token> some_tokens(std::size_t n, std::int32_t n_vocab);

}  // namespace mixed_kv::tools
