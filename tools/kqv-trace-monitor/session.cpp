#include "kqv-trace-monitor/session.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <span>

#include "common/llama_handles.h"
#include "common/llama_log.h"
#include "common/run_tool.h"
#include "kqv-tensor-reader/listing.h"
#include "kqv-trace-monitor/estimate.h"
#include "kqv-trace-monitor/recorder.h"
#include "trace/output_file.h"
#include "trace/trace_writer.h"

namespace mixed_kv::tools {

namespace {

constexpr std::uint32_t kDefaultContext = 4096;

std::vector<llama_token> prompt_tokens(const llama_vocab* vocab, const std::string& prompt) {
    std::vector<llama_token> tokens = tokenize(vocab, prompt);
    if (tokens.empty()) {  // no text, and a model that adds no BOS by itself
        const llama_token start = llama_vocab_bos(vocab);
        if (start == LLAMA_TOKEN_NULL) {
            throw std::runtime_error("the prompt is empty and the model has no token to begin with");
        }
        tokens.push_back(start);
    }
    return tokens;
}

std::uint32_t context_size(const llama_model* model, const MonitorArguments& arguments, size_t n_prompt) {
    const auto trained = std::uint32_t(std::max(1, llama_model_n_ctx_train(model)));
    const std::uint32_t n_ctx = arguments.n_ctx ? (*arguments.n_ctx == 0 ? trained : *arguments.n_ctx)
                                                : std::min(kDefaultContext, trained);
    if (n_prompt > n_ctx) {
        throw std::runtime_error(
            fmt::format("the prompt's {} tokens do not fit the context of {} (-c)", n_prompt, n_ctx));
    }
    return n_ctx;
}

class Session {
  public:
    Session(const MonitorArguments& arguments, Plugin* plugin) : arguments_(arguments), plugin_(plugin) {
        if (!arguments.save_logits.empty()) logits_.emplace(arguments.save_logits);
    }

    SessionResult run() {
        const ModelHandle model = load();
        const llama_vocab* vocab = llama_model_get_vocab(model.get());
        n_vocab_ = llama_vocab_n_tokens(vocab);
        std::vector<llama_token> prompt = prompt_tokens(vocab, arguments_.prompt);
        ContextOptions options = arguments_.context;
        options.n_ctx = context_size(model.get(), arguments_, prompt.size());
        options.n_batch = options.n_ubatch = std::min(options.n_batch, options.n_ubatch);
        open_trace(model.get(), int64_t(prompt.size()), options);

        Recorder recorder({.layer = arguments_.layer,
                           .sources = arguments_.sources ? Sources::record : Sources::leave_out,
                           .keep_originals = arguments_.keep_originals,
                           .api = plugin_ != nullptr ? &plugin_->api() : nullptr,
                           .on_record = [this](const trace::TraceRecord& record) { on_record(record); }});
        if (arguments_.max_steps != 0) {
            options.on_node = Recorder::on_node;
            options.on_node_data = &recorder;
        }
        Context context(model.get(), options);
        say_plugin_lines();
        evaluate(context, recorder, vocab, prompt, options);
        say_plugin_lines();
        result_.n_records = recorder.n_records();
        if (recorder.n_records() == 0 && arguments_.max_steps != 0) throw_nothing_traced();
        if (recorder.n_without_originals() > 0) {
            say(fmt::format(
                "--keep-originals: {} of {} records are of layers that read another layer's cache, or "
                "one with padded heads, and have none",
                recorder.n_without_originals(), recorder.n_records()));
        }
        close_trace(vocab);
        if (logits_) logits_->publish();
        return std::move(result_);
    }

  private:
    ModelHandle load() {
        ModelOptions options;
        options.path = arguments_.model;
        options.owner = plugin_ != nullptr ? CacheOwner::plugin : CacheOwner::host;
        if (plugin_ != nullptr) {
            options.plugin_device = plugin_->device();
            options.n_gpu_layers = arguments_.n_gpu_layers > 0 ? arguments_.n_gpu_layers : -1;
            if (arguments_.n_gpu_layers == 0) {
                say("-ngl 0 with --mixed-kv-cache: the weights stay on the CPU, the cache of every layer is "
                    "on the "
                    "device " MIXED_KV_DEVICE_NAME " of the plugin");
            }
        }
        ModelHandle model = load_model(options);
        if (!llama_model_has_decoder(model.get()) || llama_model_has_encoder(model.get())) {
            throw std::runtime_error("the model '" + arguments_.model +
                                     "' is not one that continues text (no plain decoder)");
        }
        if (arguments_.layer >= llama_model_n_layer(model.get())) {
            throw std::runtime_error(fmt::format("--layer {}: the model has the layers 0 to {}",
                                                 arguments_.layer, llama_model_n_layer(model.get()) - 1));
        }
        return model;
    }

    void open_trace(const llama_model* model, int64_t n_prompt, const ContextOptions& options) {
        if (arguments_.save_gguf.empty()) return;
        const trace::TraceEstimate estimate = estimate_trace(model, arguments_, n_prompt, options.n_ubatch);
        say(fmt::format("about {} in {} records to {}", trace_tools::size_text(double(estimate.bytes())),
                        estimate.n_records(), arguments_.save_gguf));
        writer_ = std::make_unique<trace::TraceWriter>(
            arguments_.save_gguf,
            trace::TraceWriterOptions{.form = estimate.form,
                                      .expected_bytes = estimate.bytes(),
                                      .expected_records = std::uint64_t(estimate.n_records()),
                                      .keeps_written = estimate.keeps_written});
        writer_->set_info("command", arguments_.command_line);
        writer_->set_info("model", arguments_.model);
        writer_->set_info("ggml", fmt::format("{} ({})", ggml_version(), ggml_commit()));
        writer_->set_info("seed", std::to_string(arguments_.seed));
        if (plugin_ != nullptr) writer_->set_info("isa", plugin_->api().isa());
    }

    void evaluate(Context& context, Recorder& recorder, const llama_vocab* vocab,
                  const std::vector<llama_token>& prompt, const ContextOptions& options) {
        const SamplerHandle sampler = make_sampler(arguments_.temperature, arguments_.seed);
        const auto n_prompt = int64_t(prompt.size()), chunk = int64_t(options.n_ubatch);
        n_steps_expected_ = (n_prompt + chunk - 1) / chunk + std::max(0, arguments_.n_predict - 1);
        int64_t n_past = 0;
        for (; n_past < n_prompt; n_past += std::min(chunk, n_prompt - n_past)) {
            step(context, recorder, prompt.data() + n_past, int(std::min(chunk, n_prompt - n_past)), n_past);
        }
        bool said_end = false;
        for (int i = 0; i < arguments_.n_predict; ++i) {
            const llama_token token = llama_sampler_sample(sampler.get(), context.get(), -1);
            result_.tokens.push_back(token);
            if (llama_vocab_is_eog(vocab, token) && !said_end) {
                said_end = true;  // a trace of n steps was asked for
                say(fmt::format("the model ended its text at token {}; going on, since -n asks for {}", i,
                                arguments_.n_predict));
            }
            if (i + 1 == arguments_.n_predict) break;  // nobody asks what follows
            if (n_past >= int64_t(options.n_ctx)) {
                say(fmt::format("stopped: the context of {} tokens is full (-c)", options.n_ctx));
                break;
            }
            step(context, recorder, &token, 1, n_past);
            ++n_past;
        }
    }

    void step(Context& context, Recorder& recorder, const llama_token* tokens, int n, int64_t n_past) {
        const bool traced = arguments_.max_steps < 0 || result_.n_steps < arguments_.max_steps;
        if (traced) {
            recorder.begin_step(int32_t(result_.n_steps), n_past);
            if (!arguments_.quiet) {
                write_stdout(fmt::format("step {}: {} token{} at position {}\n", result_.n_steps, n,
                                         n == 1 ? "" : "s", n_past));
            }
        }
        context.decode(tokens, n);
        if (traced) {
            recorder.end_step();
            ++result_.n_traced;
            if (recorder.n_records() == 0) throw_nothing_traced();
            if (recorder.n_left_out() > 0 && !said_left_out_) {
                said_left_out_ = true;
                say(fmt::format(
                    "{} attention op(s) of a step have no record: a layer's second one, or one without "
                    "a layer's number",
                    recorder.n_left_out()));
            }
        }
        ++result_.n_steps;
        if (logits_) {
            const std::span logits(llama_get_logits_ith(context.get(), -1), std::size_t(n_vocab_));
            logits_->append(std::as_bytes(logits));
        }
        progress();
    }

    void on_record(const trace::TraceRecord& record) {
        if (!arguments_.quiet) {
            write_stdout(fmt::format("layer {}, step {} ({} cache)\n{}", record.layer, record.step,
                                     record.cache == trace::CacheKind::mixed ? "mixed" : "standard",
                                     trace_tools::statistics_table(record)));
            if (arguments_.verbose) write_stdout(trace_tools::describe_tensors(record));
        }
        if (writer_) writer_->append(record);
    }

    void progress() const {
        if (arguments_.quiet || !writer_ || isatty(STDERR_FILENO) != 1) return;
        fmt::print(stderr, "\rstep {} of {}, {} written   {}", result_.n_steps, n_steps_expected_,
                   trace_tools::size_text(double(writer_->data_bytes())),
                   result_.n_steps == n_steps_expected_ ? "\n" : "");
    }

    void close_trace(const llama_vocab* vocab) {
        if (!writer_) return;
        std::string tokens, text;
        for (const llama_token token : result_.tokens) {
            tokens += (tokens.empty() ? "" : " ") + std::to_string(token);
            text += piece(vocab, token);
        }
        writer_->set_info("generated_tokens", tokens);
        const std::uint64_t bytes = writer_->data_bytes();
        writer_->finish();
        say(fmt::format("{} records of {} steps, {} of tensors, in {}", result_.n_records, result_.n_traced,
                        trace_tools::size_text(double(bytes)), arguments_.save_gguf));
    }

    [[noreturn]] void throw_nothing_traced() const {
        throw std::runtime_error(
            "no flash attention ran, so there is nothing to trace: either flash attention is off (its "
            "MUL_MAT and "
            "SOFT_MAX form is not traced; turn it on with -fa on), or the model has no attention");
    }

    void say(const std::string& line) const {
        if (!arguments_.quiet) {
            std::fflush(stdout);
            fmt::print(stderr, "kqv-trace-monitor: {}\n", line);
        }
    }

    void say_plugin_lines() {
        if (plugin_ == nullptr) return;
        for (const std::string& line : plugin_->new_report_lines()) say(line);
    }

    const MonitorArguments& arguments_;
    Plugin* plugin_;
    std::unique_ptr<trace::TraceWriter> writer_;
    std::optional<trace::OutputFile> logits_;  // of every step, one after the other
    SessionResult result_;
    int n_vocab_ = 0;
    int64_t n_steps_expected_ = 0;
    bool said_left_out_ = false;
};

}  // namespace

SessionResult run_session(const MonitorArguments& arguments, Plugin* plugin) {
    return Session(arguments, plugin).run();
}

}  // namespace mixed_kv::tools
