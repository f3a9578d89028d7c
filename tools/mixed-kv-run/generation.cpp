#include "mixed-kv-run/generation.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <stdexcept>

#include "common/host_kv_tensors.h"
#include "common/llama_handles.h"
#include "common/llama_log.h"

namespace mixed_kv::tools {

namespace {

constexpr std::uint32_t kDefaultContext = 4096;

double now_seconds() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

void check_model_kind(const llama_model* model, const std::string& path) {
    if (!llama_model_has_decoder(model) || llama_model_has_encoder(model)) {
        throw std::runtime_error("the model '" + path +
                                 "' is not one that continues text (no plain decoder)");
    }
}

std::uint32_t context_size(const llama_model* model, const RunArguments& arguments) {
    const auto trained = static_cast<std::uint32_t>(std::max(1, llama_model_n_ctx_train(model)));
    if (!arguments.n_ctx) {
        return std::min(kDefaultContext, trained);
    }
    if (*arguments.n_ctx > trained) {
        fmt::print(stderr,
                   "mixed-kv-run: warning: -c {} is more than the {} tokens the model was trained for\n",
                   *arguments.n_ctx, trained);
    }
    return *arguments.n_ctx == 0 ? trained : *arguments.n_ctx;
}

std::vector<llama_token> prompt_tokens(const llama_vocab* vocab, const std::string& prompt,
                                       std::uint32_t n_ctx) {
    std::vector<llama_token> tokens = tokenize(vocab, prompt);
    if (tokens.empty()) {  // no text, and a model that adds no BOS by itself
        const llama_token start = llama_vocab_bos(vocab);
        if (start == LLAMA_TOKEN_NULL) {
            throw std::runtime_error("the prompt is empty and the model has no token to begin with");
        }
        tokens.push_back(start);
    }
    if (tokens.size() > n_ctx) {
        throw std::runtime_error(
            fmt::format("the prompt's {} tokens do not fit the context of {} (-c)", tokens.size(), n_ctx));
    }
    return tokens;
}

void run_prompt_tokens(Context& context, const std::vector<llama_token>& tokens, std::uint32_t n_batch,
                       const RunEvents& events, RunResult& result) {
    const int n = static_cast<int>(tokens.size());
    const double start = now_seconds();
    for (int at = 0; at < n;) {
        const int count = std::min(n - at, static_cast<int>(n_batch));
        context.decode(tokens.data() + at, count);
        at += count;
        events.on_prompt_progress(at, n);
    }
    result.prompt_seconds = now_seconds() - start;
    result.n_prompt = n;
}

void generate(Context& context, const llama_vocab* vocab, const RunArguments& arguments, std::uint32_t n_ctx,
              const RunEvents& events, RunResult& result) {
    const SamplerHandle sampler = make_sampler(arguments.temperature, arguments.seed);
    const double start = now_seconds();
    for (int i = 0; i < arguments.n_predict; i++) {
        llama_token token = llama_sampler_sample(sampler.get(), context.get(), -1);
        if (!arguments.ignore_eos && llama_vocab_is_eog(vocab, token)) {
            break;
        }
        result.tokens.push_back(token);
        const std::string text = piece(vocab, token);
        result.text += text;
        events.on_text(text);
        if (i + 1 == arguments.n_predict) {
            break;  // nobody asks what follows
        }
        if (result.n_prompt + result.n_decoded >= static_cast<int>(n_ctx)) {
            result.context_full = true;
            break;
        }
        context.decode(&token, 1);
        result.n_decoded++;
    }
    result.generation_seconds = now_seconds() - start;
}

// What llama.cpp's own F16 cache keeps resident for n_rows rows: such a cache, just long enough, is created
// on the same model and measured. Leaves the result to the shapes where memory is short, since people run
// this tool for want of memory.
std::optional<std::uint64_t> measure_f16_rows(llama_model* model, const RunArguments& arguments,
                                              std::int64_t n_rows, std::uint64_t expected_bytes) {
    // The factor leaves room for the compute buffers and everybody else.
    if (expected_bytes > available_memory_bytes() / 2) {
        return std::nullopt;
    }
    HostKvTensors tensors;
    llama_context_params params = llama_context_default_params();
    params.n_ctx = static_cast<std::uint32_t>(n_rows);
    params.n_batch = params.n_ubatch = arguments.context.n_ubatch;
    params.n_threads = params.n_threads_batch = arguments.context.n_threads;
    params.offload_kqv = false;
    params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;  // V in rows, as in the mixed cache
    params.cb_eval = HostKvTensors::on_node;
    params.cb_eval_user_data = &tensors;
    llama_context* context = llama_init_from_model(model, params);
    if (context == nullptr) {
        (void)take_logged_errors();
        return std::nullopt;
    }
    llama_token token = 0;
    const int status = llama_decode(context, llama_batch_get_one(&token, 1));
    const std::uint64_t bytes = resident_bytes(tensors.row_ranges(n_rows));
    llama_free(context);
    return status == 0 && !tensors.empty() ? std::optional(bytes) : std::nullopt;
}

void measure_memory(const RunInput& input, const HostKvTensors& host, RunResult& result) {
    if (input.plugin != nullptr && input.owner == CacheOwner::plugin) {
        const mixed_kv_counters counters = input.plugin->counters();
        result.active = counters.n_tensors_mixed > 0;
        result.kv_bookkeeping_bytes = counters.bookkeeping_bytes;
        result.kv_bytes = input.plugin->resident_cache_bytes() + counters.bookkeeping_bytes;
        result.values = counters.values_written;
        result.kv_bytes_f16 = counters.f16_bytes_written;
        result.budget_bytes = counters.budget_bytes;
        result.budget_steps = counters.steps;
        result.f16_bytes_declared = counters.f16_bytes_declared;
    }
    result.kv_bytes += resident_bytes(host.row_ranges(result.n_live_rows));
    result.values += host.row_values(result.n_live_rows);
    result.kv_bytes_f16 = result.kv_bytes_f16.value_or(0) + host.row_values(result.n_live_rows) * 2;
    if (input.owner == CacheOwner::host && input.arguments.context.type_k == GGML_TYPE_F16 &&
        input.arguments.context.type_v == GGML_TYPE_F16) {
        result.kv_bytes_f16 = result.kv_bytes;
        result.kv_bytes_f16_measured = true;
    }
    if (input.bytes_of_rows != nullptr) {
        *input.bytes_of_rows = resident_bytes(host.row_ranges(input.rows_to_measure));
    }
}

}  // namespace

RunResult run_prompt(const RunInput& input, const RunEvents& events) {
    const RunArguments& arguments = input.arguments;
    const bool plugin_owns = input.owner == CacheOwner::plugin;
    const ModelHandle model =
        load_model({.path = arguments.model,
                    .owner = input.owner,
                    .plugin_device = input.plugin != nullptr ? input.plugin->device() : nullptr,
                    .n_gpu_layers = arguments.n_gpu_layers});
    check_model_kind(model.get(), arguments.model);
    const llama_vocab* vocab = llama_model_get_vocab(model.get());
    const std::uint32_t n_ctx = context_size(model.get(), arguments);
    const std::vector<llama_token> tokens = prompt_tokens(vocab, arguments.prompt, n_ctx);

    RunResult result;
    HostKvTensors host;
    {
        ContextOptions options = arguments.context;
        options.n_ctx = n_ctx;
        // Layers that were not offloaded keep their cache in llama.cpp's hands also when the plugin is in
        // use.
        if (!plugin_owns || arguments.n_gpu_layers >= 0) {
            options.on_node = HostKvTensors::on_node;
            options.on_node_data = &host;
        }
        Context context(model.get(), options);
        if (plugin_owns) {
            result.report = input.plugin->new_report_lines();
        }
        events.on_cache_created(result.report);
        if (arguments.warm_up) {
            context.warm_up(vocab);
            host.seal();
        }
        result.n_ctx = n_ctx;
        events.on_begin();
        run_prompt_tokens(context, tokens, options.n_batch, events, result);
        host.seal();
        generate(context, vocab, arguments, n_ctx, events, result);
        events.on_end();
        result.n_live_rows = result.n_prompt + result.n_decoded;
        measure_memory(input, host, result);
        if (plugin_owns) {
            for (std::string& line : input.plugin->new_report_lines()) {
                result.report.push_back(std::move(line));
            }
        }
    }
    if (arguments.json && !arguments.compare && !result.kv_bytes_f16_measured) {
        const std::optional<std::uint64_t> measured =
            measure_f16_rows(model.get(), arguments, result.n_live_rows, result.kv_bytes_f16.value_or(0));
        result.kv_bytes_f16_measured = measured.has_value();
        result.kv_bytes_f16 = measured ? measured : result.kv_bytes_f16;
    }
    return result;
}

}  // namespace mixed_kv::tools
