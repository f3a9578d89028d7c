// A small RAII layer over libllama's public API for tests: load a model with the host's own cache or with the
// plugin's device, run tokens, collect logits, compare them, read memory use.
//
// Backends are global to a process and the plugin reads its settings when it is loaded, so one process can
// test one configuration: settings that differ need processes of their own (see logits_runner.cpp).
#pragma once

#include <llama.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace mixed_kv::test {

/// Name of the plugin's backend registry entry, as `ggml_backend_reg_by_name` knows it.
inline constexpr const char* kPluginRegName = "mixed-kv";

struct BackendOptions {
    std::string directory;    ///< of the loadable CPU backends; empty: the folder llama.cpp was found in
    std::string plugin_path;  ///< becomes GGML_BACKEND_PATH; empty: whatever that variable says already
};

/// Loads the best CPU backend of the directory, then what GGML_BACKEND_PATH names, as every llama.cpp program
/// does. Later calls do nothing. Throws std::runtime_error when there is no CPU device afterwards.
void load_backends(const BackendOptions& options = {});

/// The plugin's device, or null when the plugin is not loaded or has declined.
ggml_backend_dev_t plugin_device();

/// Lines logged by llama.cpp and its backends since the process started or clear_log(). Each without its
/// newline.
std::vector<std::string> logged_lines();
void clear_log();

/// Whose cache a model's contexts use.
enum class CacheOwner {
    kHost,     ///< no devices, no offloaded layers: the cache lies in CPU buffers
    kPlugin,   ///< the plugin's device, named explicitly
    kDefault,  ///< llama.cpp's own choice of devices and layers
};

class Model {
  public:
    /// Throws std::runtime_error when the model does not load, or when the plugin is wanted but absent.
    Model(const std::string& path, CacheOwner owner);

    llama_model* get() const { return model_.get(); }
    const llama_vocab* vocab() const { return llama_model_get_vocab(model_.get()); }
    std::int32_t n_vocab() const { return llama_vocab_n_tokens(vocab()); }

  private:
    struct Deleter {
        void operator()(llama_model* model) const { llama_model_free(model); }
    };
    std::unique_ptr<llama_model, Deleter> model_;
};

/// Logits of consecutive positions: [n_rows][n_vocab].
struct Logits {
    std::size_t n_vocab = 0;
    std::vector<float> values;

    std::size_t n_rows() const { return n_vocab == 0 ? 0 : values.size() / n_vocab; }
    const float* row(std::size_t i) const { return values.data() + i * n_vocab; }
    std::int32_t top(std::size_t i) const;  ///< index of the largest logit
    void append(const Logits& other);
};

/// One token of a batch that mixes sequences.
struct BatchToken {
    llama_token token;
    llama_pos position;
    std::vector<llama_seq_id> sequences = {0};
    bool wants_logits = true;
};

enum class Threadpool {
    kNone,     ///< ggml makes threads for every graph (node-llama-cpp)
    kPolling,  ///< a pool whose idle workers spin (llama-cli, llama-server)
};

struct ContextOptions {
    std::uint32_t n_ctx = 1024;
    std::uint32_t n_batch = 512;
    std::uint32_t n_ubatch = 512;
    std::int32_t n_threads = 2;
    std::uint32_t n_seq_max = 1;
    bool kv_unified = false;
    bool swa_full = false;
    bool offload_kqv = true;
    llama_flash_attn_type flash_attn = LLAMA_FLASH_ATTN_TYPE_ENABLED;
    ggml_type type_k = GGML_TYPE_F16;
    ggml_type type_v = GGML_TYPE_F16;
    Threadpool threadpool = Threadpool::kNone;
    float yarn_factor = 0.0f;  ///< > 0: positions stretched by YaRN, n_ctx / factor of them as trained
    ggml_backend_sched_eval_callback eval_callback = nullptr;
    void* eval_callback_data = nullptr;
};

class Context {
  public:
    /// Throws std::runtime_error when the context cannot be made.
    Context(const Model& model, const ContextOptions& options);
    ~Context();
    Context(const Context&) = delete;
    Context& operator=(const Context&) = delete;

    llama_context* get() const { return context_; }
    llama_memory_t memory() const { return llama_get_memory(context_); }

    /// Runs tokens at positions first_position, first_position + 1, ... of one sequence, in batches of
    /// n_batch. Returns the logits of every position. Throws std::runtime_error with llama_decode's status
    /// when it fails.
    Logits decode(const std::vector<llama_token>& tokens, llama_pos first_position = 0,
                  llama_seq_id sequence = 0);

    /// The same without logits but the last position's, which costs less on long prompts.
    Logits prefill(const std::vector<llama_token>& tokens, llama_pos first_position = 0,
                   llama_seq_id sequence = 0);

    /// Runs one batch as given. Returns the logits of the tokens that want them, in order.
    Logits decode_batch(const std::vector<BatchToken>& batch);

    /// llama_decode's status for one batch, for tests of failures. 0 is success.
    std::int32_t try_decode(const std::vector<BatchToken>& batch);

    /// Appends n tokens, each the most probable after the one before; `token` is the first to be run. Returns
    /// the chosen tokens; adds the logits they were chosen from to *logits.
    std::vector<llama_token> generate(llama_token token, llama_pos position, std::size_t n,
                                      llama_seq_id sequence = 0, Logits* logits = nullptr);

    void clear(bool data = true) { llama_memory_clear(memory(), data); }
    bool remove(llama_seq_id sequence, llama_pos first, llama_pos last) {
        return llama_memory_seq_rm(memory(), sequence, first, last);
    }
    void copy(llama_seq_id from, llama_seq_id to, llama_pos first = -1, llama_pos last = -1) {
        llama_memory_seq_cp(memory(), from, to, first, last);
    }
    void keep(llama_seq_id sequence) { llama_memory_seq_keep(memory(), sequence); }
    void shift(llama_seq_id sequence, llama_pos first, llama_pos last, llama_pos delta) {
        llama_memory_seq_add(memory(), sequence, first, last, delta);
    }
    void divide(llama_seq_id sequence, llama_pos first, llama_pos last, int divisor) {
        llama_memory_seq_div(memory(), sequence, first, last, divisor);
    }
    llama_pos last_position(llama_seq_id sequence) { return llama_memory_seq_pos_max(memory(), sequence); }

    std::vector<std::uint8_t> save() const;
    void restore(const std::vector<std::uint8_t>& state);  ///< throws std::runtime_error when refused
    std::vector<std::uint8_t> save_sequence(llama_seq_id sequence, llama_state_seq_flags flags = 0) const;
    void restore_sequence(llama_seq_id sequence, const std::vector<std::uint8_t>& state,
                          llama_state_seq_flags flags = 0);

  private:
    Logits run(const std::vector<llama_token>& tokens, llama_pos first, llama_seq_id sequence,
               bool all_logits);

    llama_context* context_ = nullptr;
    std::size_t n_vocab_ = 0;
    ggml_threadpool_t threadpool_ = nullptr;
    void (*free_threadpool_)(ggml_threadpool_t) = nullptr;
};

/// BOS, then pseudo-random plain tokens. The same arguments give the same tokens on every machine.
std::vector<llama_token> random_tokens(std::size_t n, std::int32_t n_vocab, std::uint64_t seed);

/// How far `actual` is from `expected`, over rows (positions) of logits.
struct Comparison {
    std::size_t n_rows = 0;
    double nmse = 0;  ///< sum of squared differences / sum of squares of expected; infinite with a NaN
    double worst_row_nmse = 0;  ///< the same per row, maximum
    std::size_t worst_row = 0;
    double max_abs = 0;
    double mean_kld = 0;  ///< of softmax(expected) against softmax(actual), natural logarithm
    double max_kld = 0;
    std::size_t top1_equal = 0;  ///< rows with the same most probable token
    std::size_t n_not_finite = 0;

    std::string text() const;
};

/// Throws std::invalid_argument when the shapes differ or there is nothing to compare.
Comparison compare(const Logits& expected, const Logits& actual);

}  // namespace mixed_kv::test
