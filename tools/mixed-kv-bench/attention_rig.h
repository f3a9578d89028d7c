#pragma once

#include <ggml.h>

#include <cstdint>
#include <string>
#include <vector>

#include "mixed-kv-bench/host_runtime.h"
#include "mixed_kv/fp16.h"

namespace mixed_kv::tools {

// Shape of one attention op.
struct AttentionShape {
    int head_dim = 128, n_head = 32, n_head_kv = 8, n_seq = 1;
    std::int64_t n_kv = 32768;  // cells per sequence, those of the queries' own tokens included
    std::int64_t n_q = 1;       // query rows per sequence: the last n_q tokens, causal
    std::int64_t n_hot = 0;     // last rows of every sequence that are still in FP16

    std::int64_t row_elements() const { return std::int64_t(n_head_kv) * head_dim; }
    std::int64_t kv_values() const { return 2 * n_kv * n_seq * row_elements(); }
    // Multiply-accumulates of Q K and P V that a causal mask leaves, two operations each.
    double useful_operations() const;
    // Which part of them is on rows that are still in FP16.
    double hot_share() const;
};

// Contents shared by all caches of one shape: rows, queries and mask. Values are normally distributed with
// standard deviation 1, so logits have 1, too.
struct AttentionData {
    explicit AttentionData(const AttentionShape& shape);
    std::vector<fp16_t> k, v;  // [n_seq][n_kv][n_head_kv][head_dim]
    std::vector<float> q;      // [n_seq][n_q][n_head][head_dim]
    std::vector<fp16_t> mask;  // [n_q][n_kv], equal for all sequences
};

// Caches of one kind, as llama.cpp lays them out (a K and a V tensor per layer), and GGML_OP_FLASH_ATTN_EXT
// over each. There are enough of them that reading one after the other reads memory, not caches.
class AttentionRig {
  public:
    struct Options {
        std::string name;  // "ours" or the host's type
        ggml_type type = GGML_TYPE_F16;
        std::string settings;            // the plugin's; empty: the host's own cache
        std::size_t rotation_bytes = 0;  // least size of all caches together
        bool huge_pages = false;         // ask the system for them before K and V are first written
    };
    // Throws std::runtime_error when there is no memory, UsageError for settings that the plugin refuses.
    AttentionRig(HostRuntime& runtime, const AttentionShape& shape, const AttentionData& data,
                 const Options& options);
    ~AttentionRig();
    AttentionRig(const AttentionRig&) = delete;
    AttentionRig& operator=(const AttentionRig&) = delete;

    const std::string& name() const { return options_.name; }
    int n_caches() const { return int(k_.size()); }
    // Bytes of K and V that one op reads, as they are stored.
    std::uint64_t kv_bytes() const { return kv_bytes_; }

    // One op over the next cache of the rotation; seconds.
    double run_next();
    // What the last op wrote: [n_seq][n_q][n_head][head_dim].
    const float* output() const { return static_cast<const float*>(out_->data); }
    ggml_tensor* last_k() const { return k_[std::size_t(last_)]; }
    ggml_tensor* last_v() const { return v_[std::size_t(last_)]; }

  private:
    bool ours() const { return !options_.settings.empty(); }
    void build();
    void fill_first(const AttentionData& data);
    void fill_rest();
    void write_hot_rows(const AttentionData& data);
    std::uint64_t stored_bytes(const ggml_tensor* t) const;

    HostRuntime& runtime_;
    AttentionShape shape_;
    Options options_;
    BackendHandle plugin_backend_;
    ggml_context *kv_context_ = nullptr, *op_context_ = nullptr;
    ggml_backend_buffer_t kv_buffer_ = nullptr, op_buffer_ = nullptr;
    std::vector<ggml_tensor*> k_, v_;
    std::vector<ggml_cgraph*> graphs_;
    ggml_tensor *q_ = nullptr, *mask_ = nullptr, *out_ = nullptr;
    std::uint64_t kv_bytes_ = 0;
    int last_ = -1;
};

}  // namespace mixed_kv::tools
