#include "kqv-trace-monitor/estimate.h"

#include <algorithm>
#include <cstdlib>
#include <string>

#include "mixed_kv/settings.h"

namespace mixed_kv::tools {

namespace {

// A number of the model's own metadata, "<architecture>.<key>"; `otherwise` where it is missing.
int64_t metadata(const llama_model* model, const std::string& key, int64_t otherwise) {
    char text[256];
    if (llama_model_meta_val_str(model, "general.architecture", text, sizeof text) < 0) return otherwise;
    const std::string name = std::string(text) + "." + key;
    if (llama_model_meta_val_str(model, name.c_str(), text, sizeof text) < 0) return otherwise;
    const int64_t value = std::strtoll(text, nullptr, 10);
    return value > 0 ? value : otherwise;
}

double cold_bytes(const ColdFormat* format, KvRole role, int64_t head_dim) {
    return format == nullptr ? 2.0 : format->bits_per_value(role, int(head_dim)) / 8.0;
}

}  // namespace

trace::TraceEstimate estimate_trace(const llama_model* model, const MonitorArguments& arguments,
                                    int64_t n_prompt, int64_t n_ubatch) {
    trace::TraceEstimate e;
    e.form = arguments.compact ? trace::TraceForm::compact : trace::TraceForm::self_contained;
    e.has_sources = arguments.sources;
    e.keeps_written = arguments.keep_originals;
    e.n_layers = arguments.layer >= 0 ? 1 : llama_model_n_layer(model);
    e.n_head = std::max(1, llama_model_n_head(model));
    e.n_head_kv = std::max(1, llama_model_n_head_kv(model));
    const int64_t head_dim = std::max<int64_t>(1, llama_model_n_embd(model) / e.n_head);
    e.head_dim_k = metadata(model, "attention.key_length", head_dim);
    e.head_dim_v = metadata(model, "attention.value_length", head_dim);
    e.n_prompt = n_prompt;
    e.n_ubatch = n_ubatch;
    e.n_decode = std::max(0, arguments.n_predict - 1);
    if (arguments.max_steps >= 0) {
        const int64_t n_prompt_steps = (n_prompt + n_ubatch - 1) / n_ubatch;
        e.n_prompt = std::min(n_prompt, arguments.max_steps * n_ubatch);
        e.n_decode = std::clamp<int64_t>(arguments.max_steps - n_prompt_steps, 0, e.n_decode);
    }
    const auto bytes_per_value = [](ggml_type type) {
        return double(ggml_type_size(type)) / double(ggml_blck_size(type));
    };
    e.bytes_per_value =
        (bytes_per_value(arguments.context.type_k) + bytes_per_value(arguments.context.type_v)) / 2;
    if (arguments.mixed && arguments.context.type_k == GGML_TYPE_F16 &&
        arguments.context.type_v == GGML_TYPE_F16) {
        const Settings settings = Settings::from_environment();
        // What was just written stays exact as well, and so does the page around the window's edge.
        e.hot_rows = settings.window + settings.sinks + n_ubatch + kPageTokens;
        const int n_layers = llama_model_n_layer(model);
        const int first = arguments.layer >= 0 ? arguments.layer : 0;
        double sum = 0;
        for (int layer = first; layer < first + e.n_layers; ++layer) {
            sum += cold_bytes(settings.format(KvRole::key, layer, n_layers), KvRole::key, e.head_dim_k) +
                   cold_bytes(settings.format(KvRole::value, layer, n_layers), KvRole::value, e.head_dim_v);
        }
        e.cold_bytes_per_value = sum / (2.0 * double(e.n_layers));
    }
    return e;
}

}  // namespace mixed_kv::tools
