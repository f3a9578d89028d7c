#pragma once

#include <ggml-cpu.h>
#include <llama.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace mixed_kv::tools {

struct ModelFree {
    void operator()(llama_model* model) const { llama_model_free(model); }
};
struct SamplerFree {
    void operator()(llama_sampler* sampler) const { llama_sampler_free(sampler); }
};
using ModelHandle = std::unique_ptr<llama_model, ModelFree>;
using SamplerHandle = std::unique_ptr<llama_sampler, SamplerFree>;

// Whose cache a model's contexts use. llama.cpp decides that when the model is loaded.
enum class CacheOwner {
    host,    // no devices, no offloaded layers: llama.cpp as it is without the plugin
    plugin,  // the plugin's device; the weights stay where llama.cpp puts them without it
};

struct ModelOptions {
    std::string path;
    CacheOwner owner = CacheOwner::plugin;
    ggml_backend_dev_t plugin_device = nullptr;
    int n_gpu_layers = -1;  // layers whose cache is the plugin's, all when negative
};

// Throws std::runtime_error naming the cause: no such file, not GGUF, or what llama.cpp says of it.
ModelHandle load_model(const ModelOptions& options);

// A polling thread pool like llama-cli's and llama-server's. Contexts that take turns share one: the workers
// of a pool of their own would spin on for a while on the cores that the next context computes on.
class ThreadPool {
  public:
    explicit ThreadPool(int n_threads);
    ~ThreadPool();
    ThreadPool(const ThreadPool&) = delete;
    ThreadPool& operator=(const ThreadPool&) = delete;

    ggml_threadpool_t get() const { return pool_; }

  private:
    ggml_threadpool_t pool_ = nullptr;
};

struct ContextOptions {
    std::uint32_t n_ctx = 0;  // of all sequences together; 0: as long as the model was trained for
    std::uint32_t n_batch = 2048;
    std::uint32_t n_ubatch = 512;
    std::uint32_t n_seq_max = 1;
    bool kv_unified = false;  // sequences share one stream of cells, else each has its own
    int n_threads = 1;
    int n_threads_batch = 1;
    ggml_type type_k = GGML_TYPE_F16;
    ggml_type type_v = GGML_TYPE_F16;
    llama_flash_attn_type flash_attention = LLAMA_FLASH_ATTN_TYPE_AUTO;
    bool polling_pool = true;                 // the thread pool that llama-cli and llama-server attach
    ggml_threadpool_t shared_pool = nullptr;  // instead of one of its own; must outlive the context
    ggml_backend_sched_eval_callback on_node = nullptr;
    void* on_node_data = nullptr;
};

// A context with its thread pools.
class Context {
  public:
    // Throws std::runtime_error with what llama.cpp said, or when n_ctx is beyond what this machine could
    // ever hold.
    Context(llama_model* model, const ContextOptions& options);
    ~Context();
    Context(const Context&) = delete;
    Context& operator=(const Context&) = delete;

    llama_context* get() const { return context_; }
    llama_memory_t memory() const { return llama_get_memory(context_); }

    // Runs consecutive tokens of sequence 0, at most n_batch of them, and waits for the result; logits of the
    // last.
    void decode(const llama_token* tokens, int n);
    // Any tokens.
    void decode(const llama_batch& batch);
    // llama.cpp's own warm-up: touches the weights once, leaves the cache empty.
    void warm_up(const llama_vocab* vocab);

  private:
    void attach_pools(const ContextOptions& options);

    llama_context* context_ = nullptr;
    ggml_threadpool_t pool_ = nullptr, batch_pool_ = nullptr;
    decltype(&ggml_threadpool_free) free_pool_ = nullptr;
};

// Text to tokens, with the model's BOS and with special tokens recognised, as llama-cli does.
std::vector<llama_token> tokenize(const llama_vocab* vocab, const std::string& text);
// A token's text; special tokens have none.
std::string piece(const llama_vocab* vocab, llama_token token);

// Greedy at temperature <= 0, else llama.cpp's usual chain: top-k 40, top-p 0.95, min-p 0.05, temperature.
SamplerHandle make_sampler(float temperature, std::uint32_t seed);

// Cache types by name, as llama.cpp's -ctk takes them. nullopt: unknown.
std::optional<ggml_type> cache_type_from_name(const std::string& name);
std::string cache_type_names();

}  // namespace mixed_kv::tools
