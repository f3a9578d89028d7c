#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "common/llama_handles.h"
#include "common/plugin.h"
#include "mixed-kv-eval/coded_rows.h"

namespace mixed_kv::tools {

// One cache to evaluate. Names:
//   f16                                    our storage, everything exact, float32 accumulation: the reference
//   host:TYPE[:norot]                      llama.cpp's own cache; norot: LLAMA_ATTN_ROT_DISABLE=1
//   host:TYPE[:norot]+WINDOW+SINKS         that type's rows in a cache with a window and sinks (ExactRows):
//                                          like for like beside ours, ggml's functions on our exact rows
//   format:K[/V]+WINDOW+SINKS              the same with our formats; +0+0: no row in FP16 at all
//   mixed:balanced                         a preset
//   mixed:small,window=128                 a preset with settings changed
//   mixed:k=q4,v=q4,window=128,sinks=8     our cache; what is not named is the default preset's
//   mixed:budget=25%,ladder=f16,q8,q3      a budget, of F16 at full length
//   mixed:k=q4,layers=0,-1:q8/q5           layers with formats of their own (docs/settings.md)
struct Configuration {
    std::string name;
    CacheOwner owner = CacheOwner::plugin;
    std::string settings;  // for mixed_kv_api.configure
    ggml_type host_type = GGML_TYPE_F16;
    bool rotation = true;
    // Exact rows of the plugin's, put through a codec: host_type's, or that of formats of ours (null: FP16).
    std::optional<ExactRows> coded;
    bool has_formats = false;
    const ColdFormat *key_format = nullptr, *value_format = nullptr;

    // Some of its rows are cold once there are enough.
    bool has_window() const { return coded || name.rfind("mixed", 0) == 0; }
};

// Throws UsageError for a name that is none of the above.
Configuration parse_configuration(const std::string& name);

// Splits a list at semicolons and spaces; commas separate configurations too, except inside "mixed:...",
// where anything that does not begin a configuration continues it.
std::vector<Configuration> parse_configurations(const std::string& list);

// A context with the cache of a configuration, and what that cache holds.
class EvaluatedCache {
  public:
    // models: one per owner; the plugin's may be null when every configuration is the host's.
    EvaluatedCache(const Configuration& configuration, const Plugin& plugin, llama_model* host_model,
                   llama_model* plugin_model, ContextOptions options);

    Context& context() { return *context_; }
    const std::string& name() const { return name_; }
    // What our cache consists of; empty for the host's.
    std::vector<mixed_kv_tensor_info> tensors() const;
    // Stored bits per value of the live rows now, everything included; host caches: their type's.
    double bits_per_value() const;
    // Rows that are stored in a cold format now; never of the host's.
    bool has_cold_rows() const;
    // Bytes of storage of the live rows now.
    double kv_bytes() const;

  private:
    std::string name_;
    const Plugin& plugin_;
    std::unique_ptr<CodedRows> coded_;
    std::unique_ptr<Context> context_;
    bool ours_;
    double host_bits_ = 16;
    double host_values_per_row_ = 0;                // all layers, K and V
    std::size_t first_tensor_ = 0, n_tensors_ = 0;  // in Plugin::tensors()
};

}  // namespace mixed_kv::tools
