#include "mixed-kv-eval/configuration.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>

#include "common/run_tool.h"
#include "mixed_kv/settings.h"

namespace mixed_kv::tools {

namespace {

constexpr const char* kExact = "k=f16,v=f16";

}  // namespace

Configuration parse_configuration(const std::string& name) {
    Configuration c;
    c.name = name;
    if (name == "f16" || name == "f16:scalar") {
        c.settings = std::string(kExact) + (name == "f16" ? "" : ",isa=scalar");
        return c;
    }
    if (name.rfind("host:", 0) == 0) {
        std::string type = name.substr(5);
        if (const auto suffix = type.find(":norot");
            suffix != std::string::npos && suffix + 6 == type.size()) {
            c.rotation = false;
            type.resize(suffix);
        }
        const auto found = cache_type_from_name(type);
        if (!found)
            throw UsageError(fmt::format("'{}': llama.cpp's cache types are {}", name, cache_type_names()));
        c.owner = CacheOwner::host;
        c.host_type = *found;
        return c;
    }
    if (name == "mixed" || name.rfind("mixed:", 0) == 0) {
        // The plugin checks the rest; a word without a value is a preset.
        const std::string rest = name == "mixed" ? std::string(presets().front().name) : name.substr(6);
        const bool is_preset = rest.substr(0, rest.find(',')).find('=') == std::string::npos;
        c.settings = (is_preset ? "preset=" : "") + rest;
        return c;
    }
    throw UsageError(fmt::format(
        "'{}' is no configuration: f16, host:TYPE[:norot], mixed:PRESET or "
        "mixed:k=FORMAT,v=FORMAT,window=N,sinks=N,layers=RULES or mixed:budget=SHARE%,ladder=FORMATS",
        name));
}

std::vector<Configuration> parse_configurations(const std::string& list) {
    std::vector<std::string> names;
    std::string item;
    bool after_comma = false;
    const auto take = [&](char separator) {
        if (item.empty()) return;
        // A setting (window=64) or, after layers=, a layer's number.
        const auto begins = [&](const char* with) { return item.rfind(with, 0) == 0; };
        const bool continues = after_comma && !names.empty() && names.back().rfind("mixed:", 0) == 0 &&
                               item != "f16" && !begins("f16:") && !begins("host:") && item != "mixed" &&
                               !begins("mixed:");
        if (continues) {
            names.back() += ',' + item;
        } else {
            names.push_back(item);
        }
        item.clear();
        after_comma = separator == ',';
    };
    for (const char c : list) {
        if (c == ',' || c == ';' || c == ' ') {
            take(c);
        } else {
            item += c;
        }
    }
    take(' ');
    std::vector<Configuration> result;
    for (const std::string& name : names) result.push_back(parse_configuration(name));
    if (result.empty()) throw UsageError("--configs names no configuration");
    return result;
}

EvaluatedCache::EvaluatedCache(const Configuration& configuration, const Plugin& plugin,
                               llama_model* host_model, llama_model* plugin_model, ContextOptions options)
    : name_(configuration.name), plugin_(plugin), ours_(configuration.owner == CacheOwner::plugin) {
    options.flash_attention = LLAMA_FLASH_ATTN_TYPE_ENABLED;
    if (!ours_) {
        options.type_k = options.type_v = configuration.host_type;
        host_bits_ = 8.0 * double(ggml_type_size(configuration.host_type)) /
                     double(ggml_blck_size(configuration.host_type));
        const double head_dim = double(llama_model_n_embd(host_model)) / llama_model_n_head(host_model);
        host_values_per_row_ =
            2.0 * llama_model_n_layer(host_model) * llama_model_n_head_kv(host_model) * head_dim;
        // llama.cpp reads this when a cache is created.
        setenv("LLAMA_ATTN_ROT_DISABLE", configuration.rotation ? "0" : "1", 1);
        context_ = std::make_unique<Context>(host_model, options);
        return;
    }
    char error[256] = "";
    if (plugin.api().configure(configuration.settings.c_str(), error, sizeof error) == 0) {
        throw UsageError(fmt::format("'{}': {}", configuration.name, error));
    }
    first_tensor_ = plugin.tensors().size();
    context_ = std::make_unique<Context>(plugin_model, options);
    n_tensors_ = plugin.tensors().size() - first_tensor_;
    plugin.api().configure("", error, sizeof error);
}

std::vector<mixed_kv_tensor_info> EvaluatedCache::tensors() const {
    const auto all = plugin_.tensors();
    const std::size_t first = std::min(first_tensor_, all.size());
    const std::size_t last = std::min(first + n_tensors_, all.size());
    return {all.begin() + std::ptrdiff_t(first), all.begin() + std::ptrdiff_t(last)};
}

bool EvaluatedCache::has_cold_rows() const {
    const auto all = ours_ ? tensors() : std::vector<mixed_kv_tensor_info>();
    return std::any_of(all.begin(), all.end(), [](const auto& tensor) { return tensor.cold_bytes > 0; });
}

double EvaluatedCache::kv_bytes() const {
    if (!ours_) {
        const double rows = double(llama_memory_seq_pos_max(context_->memory(), 0) + 1);
        return rows * host_values_per_row_ * host_bits_ / 8.0;
    }
    double bytes = 0;
    for (const mixed_kv_tensor_info& t : tensors()) {
        bytes += double(t.hot_bytes + t.cold_bytes + t.overlay_bytes + t.pinned_bytes);
    }
    return bytes;
}

double EvaluatedCache::bits_per_value() const {
    if (!ours_) return host_bits_;
    double values = 0;
    for (const mixed_kv_tensor_info& t : tensors()) {
        values += double(t.rows_written) * double(t.n_head) * double(t.head_dim);
    }
    return values == 0 ? 0 : 8.0 * kv_bytes() / values;
}

}  // namespace mixed_kv::tools
