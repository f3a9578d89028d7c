#include "common/llama_handles.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <stdexcept>

#include "common/backends.h"
#include "common/llama_log.h"
#include "common/model_file.h"
#include "common/resident_memory.h"

namespace mixed_kv::tools {

namespace {

constexpr std::array kCacheTypes = {GGML_TYPE_F32,    GGML_TYPE_F16,  GGML_TYPE_BF16,
                                    GGML_TYPE_Q8_0,   GGML_TYPE_Q4_0, GGML_TYPE_Q4_1,
                                    GGML_TYPE_IQ4_NL, GGML_TYPE_Q5_0, GGML_TYPE_Q5_1};

// llama.cpp's errors since the last call, the first of which is the cause.
std::string logged_cause() {
    const std::vector<std::string> errors = take_logged_errors();
    return errors.empty() ? "" : " (" + errors.front() + ")";
}

// llama.cpp keeps about this much for every cell besides K and V (llama_kv_cells: position, extension, shift,
// a bit per sequence), and writes all of it when a context is created. Asked for more than there is, it does
// not fail: the kernel kills.
constexpr std::uint64_t kHostBytesPerCell = 52;

void check_context_fits(std::uint32_t n_ctx) {
    const std::uint64_t needed = n_ctx * kHostBytesPerCell, available = available_memory_bytes();
    if (needed > available) {
        constexpr double kGib = 1024.0 * 1024.0 * 1024.0;
        throw std::runtime_error(fmt::format(
            "a context of {} tokens does not fit this machine: it takes more than {:.1f} GiB without any "
            "row in it, {:.1f} are available",
            n_ctx, static_cast<double>(needed) / kGib, static_cast<double>(available) / kGib));
    }
}

template <typename Function>
Function cpu_function(const char* name) {
    return reinterpret_cast<Function>(cpu_backend_function(name));
}

}  // namespace

ModelHandle load_model(const ModelOptions& options) {
    check_model_file(options.path);
    (void)take_logged_errors();
    llama_model_params params = llama_model_default_params();
    ggml_backend_dev_t devices[] = {nullptr, nullptr};  // ends with null
    if (options.owner == CacheOwner::plugin) {
        devices[0] = options.plugin_device;
        params.n_gpu_layers = options.n_gpu_layers;
    } else {
        params.n_gpu_layers = 0;
    }
    params.devices = devices;
    ModelHandle model(llama_model_load_from_file(options.path.c_str(), params));
    if (!model) {
        throw std::runtime_error("llama.cpp cannot load the model '" + options.path + "'" + logged_cause());
    }
    return model;
}

ThreadPool::ThreadPool(int n_threads) {
    ggml_threadpool_params params = ggml_threadpool_params_default(n_threads);
    pool_ = cpu_function<decltype(&ggml_threadpool_new)>("ggml_threadpool_new")(&params);
    if (pool_ == nullptr) {
        throw std::runtime_error("ggml cannot create a thread pool");
    }
}

ThreadPool::~ThreadPool() { cpu_function<decltype(&ggml_threadpool_free)>("ggml_threadpool_free")(pool_); }

Context::Context(llama_model* model, const ContextOptions& options) {
    check_context_fits(options.n_ctx);
    llama_context_params params = llama_context_default_params();
    params.n_ctx = options.n_ctx;
    params.n_batch = options.n_batch;
    params.n_ubatch = options.n_ubatch;
    params.n_seq_max = options.n_seq_max;
    params.kv_unified = options.kv_unified;
    params.n_threads = options.n_threads;
    params.n_threads_batch = options.n_threads_batch;
    params.type_k = options.type_k;
    params.type_v = options.type_v;
    params.flash_attn_type = options.flash_attention;
    params.cb_eval = options.on_node;
    params.cb_eval_user_data = options.on_node_data;
    (void)take_logged_errors();
    context_ = llama_init_from_model(model, params);
    if (context_ == nullptr) {
        throw std::runtime_error("llama.cpp cannot create a context of " + std::to_string(options.n_ctx) +
                                 " tokens" + logged_cause());
    }
    if (options.shared_pool != nullptr) {
        llama_attach_threadpool(context_, options.shared_pool, nullptr);
    } else if (options.polling_pool) {
        attach_pools(options);
    }
}

// As llama.cpp's common_threadpools: a second pool, the first one paused meanwhile, only where the numbers
// differ.
void Context::attach_pools(const ContextOptions& options) {
    const auto create = cpu_function<decltype(&ggml_threadpool_new)>("ggml_threadpool_new");
    free_pool_ = cpu_function<decltype(&ggml_threadpool_free)>("ggml_threadpool_free");
    ggml_threadpool_params pool = ggml_threadpool_params_default(options.n_threads);
    ggml_threadpool_params batch_pool = ggml_threadpool_params_default(options.n_threads_batch);
    if (!ggml_threadpool_params_match(&pool, &batch_pool)) {
        batch_pool_ = create(&batch_pool);
        pool.paused = true;
    }
    pool_ = create(&pool);
    if (pool_ != nullptr) {
        llama_attach_threadpool(context_, pool_, batch_pool_);
    }
}

Context::~Context() {
    llama_free(context_);
    for (ggml_threadpool_t pool : {pool_, batch_pool_}) {
        if (pool != nullptr) {
            free_pool_(pool);
        }
    }
}

void Context::decode(const llama_token* tokens, int n) {
    // llama_batch_get_one promises to leave the tokens alone.
    decode(llama_batch_get_one(const_cast<llama_token*>(tokens), n));
}

void Context::decode(const llama_batch& batch) {
    const int status = llama_decode(context_, batch);
    if (status != 0) {
        throw std::runtime_error("llama_decode failed with status " + std::to_string(status) +
                                 (status == 1 ? ": no room in the cache" : "") + logged_cause());
    }
    llama_synchronize(context_);
}

void Context::warm_up(const llama_vocab* vocab) {
    std::vector<llama_token> tokens;
    for (const llama_token token : {llama_vocab_bos(vocab), llama_vocab_eos(vocab)}) {
        if (token != LLAMA_TOKEN_NULL) {
            tokens.push_back(token);
        }
    }
    if (tokens.empty()) {
        tokens.push_back(0);
    }
    decode(tokens.data(), static_cast<int>(tokens.size()));
    llama_memory_clear(memory(), true);
    llama_synchronize(context_);
}

std::vector<llama_token> tokenize(const llama_vocab* vocab, const std::string& text) {
    const auto size = static_cast<std::int32_t>(text.size());
    std::vector<llama_token> tokens(text.size() + 2);
    std::int32_t n = llama_tokenize(vocab, text.data(), size, tokens.data(),
                                    static_cast<std::int32_t>(tokens.size()), true, true);
    if (n < 0) {
        tokens.resize(static_cast<std::size_t>(-static_cast<std::int64_t>(n)));
        n = llama_tokenize(vocab, text.data(), size, tokens.data(), -n, true, true);
    }
    if (n < 0) {
        throw std::runtime_error("llama.cpp cannot tokenize the prompt");
    }
    tokens.resize(static_cast<std::size_t>(n));
    return tokens;
}

std::string piece(const llama_vocab* vocab, llama_token token) {
    std::string text(64, '\0');
    std::int32_t n =
        llama_token_to_piece(vocab, token, text.data(), static_cast<std::int32_t>(text.size()), 0, false);
    if (n < 0) {
        text.resize(static_cast<std::size_t>(-n));
        n = llama_token_to_piece(vocab, token, text.data(), -n, 0, false);
    }
    text.resize(static_cast<std::size_t>(std::max(n, 0)));
    return text;
}

SamplerHandle make_sampler(float temperature, std::uint32_t seed) {
    SamplerHandle chain(llama_sampler_chain_init(llama_sampler_chain_default_params()));
    if (temperature <= 0) {
        llama_sampler_chain_add(chain.get(), llama_sampler_init_greedy());
        return chain;
    }
    llama_sampler_chain_add(chain.get(), llama_sampler_init_top_k(40));
    llama_sampler_chain_add(chain.get(), llama_sampler_init_top_p(0.95F, 1));
    llama_sampler_chain_add(chain.get(), llama_sampler_init_min_p(0.05F, 1));
    llama_sampler_chain_add(chain.get(), llama_sampler_init_temp(temperature));
    llama_sampler_chain_add(chain.get(), llama_sampler_init_dist(seed));
    return chain;
}

std::optional<ggml_type> cache_type_from_name(const std::string& name) {
    const auto found = std::find_if(kCacheTypes.begin(), kCacheTypes.end(),
                                    [&](ggml_type t) { return name == ggml_type_name(t); });
    return found == kCacheTypes.end() ? std::nullopt : std::optional(*found);
}

std::string cache_type_names() {
    std::string names;
    for (const ggml_type type : kCacheTypes) {
        names += (names.empty() ? "" : ", ") + std::string(ggml_type_name(type));
    }
    return names;
}

}  // namespace mixed_kv::tools
