#include "mixed-kv-eval/configuration.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <stdexcept>

#include "common/run_tool.h"
#include "mixed_kv/settings.h"

namespace mixed_kv::tools {

namespace {

constexpr const char* kExact = "k=f16,v=f16";
constexpr int kMostExactRows = 1 << 20;

// Cuts "+WINDOW+SINKS" off the end of what follows "host:" or "format:"; nullopt: there is no '+'.
std::optional<ExactRows> take_exact_rows(const std::string& name, std::string& rest) {
    const auto plus = rest.find('+');
    if (plus == std::string::npos) return std::nullopt;
    ExactRows exact;
    const char* at = rest.data() + plus;
    const char* end = rest.data() + rest.size();
    for (int* rows : {&exact.window, &exact.sinks}) {
        const auto number = at != end && *at == '+' ? std::from_chars(at + 1, end, *rows)
                                                    : std::from_chars_result{at, std::errc::invalid_argument};
        if (number.ec != std::errc() || *rows < 0 || *rows > kMostExactRows) {
            throw std::runtime_error(
                fmt::format("'{}': '{}' is not +WINDOW+SINKS, two numbers of rows from 0 to {}", name,
                            rest.substr(plus), kMostExactRows));
        }
        at = number.ptr;
    }
    if (at != end) {
        throw std::runtime_error(fmt::format("'{}': '{}' behind +WINDOW+SINKS", name, std::string(at, end)));
    }
    rest.resize(plus);
    return exact;
}

// null: f16.
const ColdFormat* format_or_fail(const std::string& name, const std::string& format) {
    if (format == "f16") return nullptr;
    const ColdFormat* found = find_cold_format(format);
    if (found != nullptr) return found;
    std::string names;
    for (const ColdFormat& f : cold_formats()) names += (names.empty() ? "" : ", ") + std::string(f.name);
    throw std::runtime_error(fmt::format("'{}': formats are f16, {}, not '{}'", name, names, format));
}

// host:TYPE[:norot][+WINDOW+SINKS], from TYPE on.
Configuration parse_host(const std::string& name, std::string type) {
    Configuration c;
    c.name = name;
    c.coded = take_exact_rows(name, type);
    if (const auto suffix = type.find(":norot"); suffix != std::string::npos && suffix + 6 == type.size()) {
        c.rotation = false;
        type.resize(suffix);
    }
    const auto found = cache_type_from_name(type);
    if (!found)
        throw std::runtime_error(
            fmt::format("'{}': llama.cpp's cache types are {}", name, cache_type_names()));
    c.host_type = *found;
    if (!c.coded) {
        c.owner = CacheOwner::host;
        return c;
    }
    if (!ggml_is_quantized(*found)) {
        throw std::runtime_error(
            fmt::format("'{}': a window and sinks stand beside a quantized type, not {}", name, type));
    }
    c.settings = kExact;
    return c;
}

// format:K[/V]+WINDOW+SINKS, from K on.
Configuration parse_format(const std::string& name, std::string formats) {
    Configuration c;
    c.name = name;
    c.coded = take_exact_rows(name, formats);
    if (!c.coded)
        throw std::runtime_error(
            fmt::format("'{}': +WINDOW+SINKS is missing; +0+0 keeps no row in FP16", name));
    const auto slash = formats.find('/');
    c.key_format = format_or_fail(name, formats.substr(0, slash));
    c.value_format =
        slash == std::string::npos ? c.key_format : format_or_fail(name, formats.substr(slash + 1));
    c.has_formats = true;
    c.settings = kExact;
    return c;
}

}  // namespace

Configuration parse_configuration(const std::string& name) {
    if (name.rfind("host:", 0) == 0) return parse_host(name, name.substr(5));
    if (name.rfind("format:", 0) == 0) return parse_format(name, name.substr(7));
    Configuration c;
    c.name = name;
    if (name == "f16" || name == "f16:scalar") {
        c.settings = std::string(kExact) + (name == "f16" ? "" : ",isa=scalar");
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
        "'{}' is no configuration: f16, host:TYPE[:norot][+WINDOW+SINKS], format:K[/V]+WINDOW+SINKS, "
        "mixed:PRESET, mixed:k=FORMAT,v=FORMAT,window=N,sinks=N,layers=RULES or "
        "mixed:budget=SHARE%,ladder=FORMATS",
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
                               item != "f16" && !begins("f16:") && !begins("host:") && !begins("format:") &&
                               item != "mixed" && !begins("mixed:");
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
    if (configuration.coded) {
        coded_ = std::make_unique<CodedRows>(
            configuration.has_formats
                ? make_format_codec(configuration.key_format, configuration.value_format)
                : make_host_codec(configuration.host_type, configuration.rotation),
            *configuration.coded);
        options.on_node = CodedRows::on_node;
        options.on_node_data = coded_.get();
        // Rows of a page share parameters, so a page has to come in one write.
        if (configuration.has_formats && configuration.coded->none() && options.n_ubatch % kPageTokens != 0) {
            throw std::runtime_error(
                fmt::format("'{}': without rows in FP16 a format stores {} rows at a time: give an "
                            "--ubatch that is a multiple of that, not {}",
                            name_, kPageTokens, options.n_ubatch));
        }
    }
    context_ = std::make_unique<Context>(plugin_model, options);
    n_tensors_ = plugin.tensors().size() - first_tensor_;
    plugin.api().configure("", error, sizeof error);
    if (coded_) {
        // Heads are known once attention has run.
        context_->warm_up(llama_model_get_vocab(plugin_model));
        try {
            coded_->follow(tensors());
        } catch (const std::runtime_error& e) {
            throw std::runtime_error(fmt::format("'{}': {}", name_, e.what()));
        }
    }
}

std::vector<mixed_kv_tensor_info> EvaluatedCache::tensors() const {
    const auto all = plugin_.tensors();
    const std::size_t first = std::min(first_tensor_, all.size());
    const std::size_t last = std::min(first + n_tensors_, all.size());
    return {all.begin() + std::ptrdiff_t(first), all.begin() + std::ptrdiff_t(last)};
}

bool EvaluatedCache::has_cold_rows() const {
    if (coded_) return coded_->has_coded_rows();
    const auto all = ours_ ? tensors() : std::vector<mixed_kv_tensor_info>();
    return std::any_of(all.begin(), all.end(), [](const auto& tensor) { return tensor.cold_bytes > 0; });
}

double EvaluatedCache::kv_bytes() const {
    if (!ours_) {
        const double rows = double(llama_memory_seq_pos_max(context_->memory(), 0) + 1);
        return rows * host_values_per_row_ * host_bits_ / 8.0;
    }
    if (coded_) {
        coded_->check();
        return coded_->bytes();
    }
    double bytes = 0;
    for (const mixed_kv_tensor_info& t : tensors()) {
        bytes += double(t.hot_bytes + t.cold_bytes + t.overlay_bytes + t.pinned_bytes);
    }
    return bytes;
}

double EvaluatedCache::bits_per_value() const {
    if (!ours_) return host_bits_;
    if (coded_) return coded_->values() == 0 ? 0 : 8.0 * kv_bytes() / coded_->values();
    double values = 0;
    for (const mixed_kv_tensor_info& t : tensors()) {
        values += double(t.rows_written) * double(t.n_head) * double(t.head_dim);
    }
    return values == 0 ? 0 : 8.0 * kv_bytes() / values;
}

}  // namespace mixed_kv::tools
