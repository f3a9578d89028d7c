#include "llama_driver.h"

#include <ggml-backend.h>
#include <ggml-cpu.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <stdexcept>

namespace mixed_kv::test {

namespace {

/// Log lines of the process. llama.cpp may continue a line in a later call.
struct Log {
    std::mutex mutex;
    std::vector<std::string> lines;
    std::string open_line;
};

Log& process_log() {
    static Log* log = new Log;  // never destroyed: backends may log while the process exits
    return *log;
}

void on_log(ggml_log_level level, const char* text, void*) {
    static const bool verbose = std::getenv("MIXED_KV_TEST_VERBOSE") != nullptr;
    if (verbose || level == GGML_LOG_LEVEL_ERROR) {
        std::fputs(text, stderr);
    }
    Log& log = process_log();
    const std::lock_guard lock(log.mutex);
    for (const char* c = text; *c != '\0'; c++) {
        if (*c == '\n') {
            log.lines.push_back(std::move(log.open_line));
            log.open_line.clear();
        } else {
            log.open_line += *c;
        }
    }
}

/// A llama_batch with room for n tokens.
class Batch {
  public:
    explicit Batch(const std::vector<BatchToken>& tokens) {
        std::size_t n_seq = 1;
        for (const BatchToken& token : tokens) {
            n_seq = std::max(n_seq, token.sequences.size());
        }
        batch_ =
            llama_batch_init(static_cast<std::int32_t>(tokens.size()), 0, static_cast<std::int32_t>(n_seq));
        batch_.n_tokens = static_cast<std::int32_t>(tokens.size());
        for (std::size_t i = 0; i < tokens.size(); i++) {
            batch_.token[i] = tokens[i].token;
            batch_.pos[i] = tokens[i].position;
            batch_.n_seq_id[i] = static_cast<std::int32_t>(tokens[i].sequences.size());
            std::copy(tokens[i].sequences.begin(), tokens[i].sequences.end(), batch_.seq_id[i]);
            batch_.logits[i] = tokens[i].wants_logits ? 1 : 0;
        }
    }
    ~Batch() { llama_batch_free(batch_); }
    Batch(const Batch&) = delete;
    Batch& operator=(const Batch&) = delete;

    const llama_batch& get() const { return batch_; }

  private:
    llama_batch batch_;
};

/// An entry of the CPU backend's registry, which lives in a library of its own.
template <typename Function>
Function cpu_function(const char* name) {
    ggml_backend_dev_t device = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
    void* address = ggml_backend_reg_get_proc_address(ggml_backend_dev_backend_reg(device), name);
    if (address == nullptr) {
        throw std::runtime_error(std::string("the CPU backend has no ") + name);
    }
    return reinterpret_cast<Function>(address);
}

}  // namespace

void load_backends(const BackendOptions& options) {
    static std::once_flag once;
    std::call_once(once, [&] {
        llama_log_set(on_log, nullptr);
        if (!options.plugin_path.empty()) {
            setenv("GGML_BACKEND_PATH", options.plugin_path.c_str(), 1);
        }
        ggml_backend_load_all_from_path(options.directory.empty() ? MIXED_KV_LLAMA_LIB_DIR
                                                                  : options.directory.c_str());
        llama_backend_init();
    });
    if (ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU) == nullptr) {
        throw std::runtime_error("no CPU backend found in " +
                                 (options.directory.empty() ? MIXED_KV_LLAMA_LIB_DIR : options.directory));
    }
}

ggml_backend_dev_t plugin_device() {
    ggml_backend_reg_t reg = ggml_backend_reg_by_name(kPluginRegName);
    return reg != nullptr && ggml_backend_reg_dev_count(reg) > 0 ? ggml_backend_reg_dev_get(reg, 0) : nullptr;
}

std::vector<std::string> logged_lines() {
    Log& log = process_log();
    const std::lock_guard lock(log.mutex);
    return log.lines;
}

void clear_log() {
    Log& log = process_log();
    const std::lock_guard lock(log.mutex);
    log.lines.clear();
}

Model::Model(const std::string& path, CacheOwner owner) {
    load_backends();
    llama_model_params params = llama_model_default_params();
    ggml_backend_dev_t devices[] = {nullptr, nullptr};  // ends with null
    if (owner == CacheOwner::kHost) {
        params.devices = devices;
        params.n_gpu_layers = 0;
    } else if (owner == CacheOwner::kPlugin) {
        devices[0] = plugin_device();
        if (devices[0] == nullptr) {
            throw std::runtime_error("the plugin's device is not there: is GGML_BACKEND_PATH set?");
        }
        params.devices = devices;
    }
    model_.reset(llama_model_load_from_file(path.c_str(), params));
    if (!model_) {
        throw std::runtime_error("cannot load " + path);
    }
}

std::int32_t Logits::top(std::size_t i) const {
    return static_cast<std::int32_t>(std::max_element(row(i), row(i) + n_vocab) - row(i));
}

void Logits::append(const Logits& other) {
    if (n_vocab == 0) {
        n_vocab = other.n_vocab;
    }
    if (other.n_vocab != n_vocab) {
        throw std::invalid_argument("logits of different vocabularies");
    }
    values.insert(values.end(), other.values.begin(), other.values.end());
}

Context::Context(const Model& model, const ContextOptions& options)
    : n_vocab_(static_cast<std::size_t>(model.n_vocab())) {
    llama_context_params params = llama_context_default_params();
    params.n_ctx = options.n_ctx;
    params.n_batch = options.n_batch;
    params.n_ubatch = options.n_ubatch;
    params.n_threads = options.n_threads;
    params.n_threads_batch = options.n_threads;
    params.n_seq_max = options.n_seq_max;
    params.kv_unified = options.kv_unified;
    params.swa_full = options.swa_full;
    params.offload_kqv = options.offload_kqv;
    params.flash_attn_type = options.flash_attn;
    if (options.yarn_factor > 0) {
        params.rope_scaling_type = LLAMA_ROPE_SCALING_TYPE_YARN;
        params.rope_freq_scale = 1.0f / options.yarn_factor;
        params.yarn_orig_ctx = std::uint32_t(float(options.n_ctx) / options.yarn_factor);
    }
    params.type_k = options.type_k;
    params.type_v = options.type_v;
    params.cb_eval = options.eval_callback;
    params.cb_eval_user_data = options.eval_callback_data;
    context_ = llama_init_from_model(model.get(), params);
    if (context_ == nullptr) {
        throw std::runtime_error("cannot make a context of " + std::to_string(options.n_ctx) + " tokens");
    }
    if (options.threadpool == Threadpool::kPolling) {
        const auto create = cpu_function<decltype(&ggml_threadpool_new)>("ggml_threadpool_new");
        free_threadpool_ = cpu_function<decltype(&ggml_threadpool_free)>("ggml_threadpool_free");
        ggml_threadpool_params pool = ggml_threadpool_params_default(options.n_threads);
        threadpool_ = create(&pool);
        llama_attach_threadpool(context_, threadpool_, threadpool_);
    }
}

Context::~Context() {
    llama_free(context_);
    if (threadpool_ != nullptr) {
        free_threadpool_(threadpool_);
    }
}

std::int32_t Context::try_decode(const std::vector<BatchToken>& batch) {
    return llama_decode(context_, Batch(batch).get());
}

Logits Context::decode_batch(const std::vector<BatchToken>& batch) {
    const std::int32_t status = try_decode(batch);
    if (status != 0) {
        throw std::runtime_error("llama_decode: status " + std::to_string(status));
    }
    Logits logits;
    logits.n_vocab = n_vocab_;
    for (std::size_t i = 0; i < batch.size(); i++) {
        if (batch[i].wants_logits) {
            const float* row = llama_get_logits_ith(context_, static_cast<std::int32_t>(i));
            logits.values.insert(logits.values.end(), row, row + n_vocab_);
        }
    }
    return logits;
}

Logits Context::run(const std::vector<llama_token>& tokens, llama_pos first, llama_seq_id sequence,
                    bool all_logits) {
    Logits logits;
    logits.n_vocab = n_vocab_;
    const std::size_t n_batch = llama_n_batch(context_);
    for (std::size_t at = 0; at < tokens.size(); at += n_batch) {
        std::vector<BatchToken> batch;
        for (std::size_t i = at; i < std::min(at + n_batch, tokens.size()); i++) {
            batch.push_back({tokens[i],
                             first + static_cast<llama_pos>(i),
                             {sequence},
                             all_logits || i + 1 == tokens.size()});
        }
        logits.append(decode_batch(batch));
    }
    return logits;
}

Logits Context::decode(const std::vector<llama_token>& tokens, llama_pos first_position,
                       llama_seq_id sequence) {
    return run(tokens, first_position, sequence, true);
}

Logits Context::prefill(const std::vector<llama_token>& tokens, llama_pos first_position,
                        llama_seq_id sequence) {
    return run(tokens, first_position, sequence, false);
}

std::vector<llama_token> Context::generate(llama_token token, llama_pos position, std::size_t n,
                                           llama_seq_id sequence, Logits* logits) {
    std::vector<llama_token> chosen;
    for (std::size_t i = 0; i < n; i++) {
        const Logits next = run({token}, position + static_cast<llama_pos>(i), sequence, true);
        token = next.top(0);
        chosen.push_back(token);
        if (logits != nullptr) {
            logits->append(next);
        }
    }
    return chosen;
}

std::vector<std::uint8_t> Context::save() const {
    std::vector<std::uint8_t> state(llama_state_get_size(context_));
    state.resize(llama_state_get_data(context_, state.data(), state.size()));
    return state;
}

void Context::restore(const std::vector<std::uint8_t>& state) {
    if (llama_state_set_data(context_, state.data(), state.size()) != state.size()) {
        throw std::runtime_error("the state was refused");
    }
}

std::vector<std::uint8_t> Context::save_sequence(llama_seq_id sequence, llama_state_seq_flags flags) const {
    std::vector<std::uint8_t> state(llama_state_seq_get_size_ext(context_, sequence, flags));
    state.resize(llama_state_seq_get_data_ext(context_, state.data(), state.size(), sequence, flags));
    return state;
}

void Context::restore_sequence(llama_seq_id sequence, const std::vector<std::uint8_t>& state,
                               llama_state_seq_flags flags) {
    if (llama_state_seq_set_data_ext(context_, state.data(), state.size(), sequence, flags) == 0) {
        throw std::runtime_error("the sequence's state was refused");
    }
}

}  // namespace mixed_kv::test
