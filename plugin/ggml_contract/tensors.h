#pragma once

#include <optional>

#include "ggml.h"
#include "mixed_kv/kv_tensor.h"

namespace mixed_kv::plugin {

// Tensors of the host's memory modules, as it creates them: by name, shape and type.

// K or V of one layer: [stream][cell][row_elements].
struct CacheTensor {
    KvRole role = KvRole::key;
    int layer = 0;
    int row_elements = 0;
    std::size_t row_bytes = 0;
    std::int64_t n_cells = 0;  // per stream
    int n_stream = 1;
    bool is_f16 = true;
};

// llama.cpp names cache tensors cache_<tag>k_l<layer> and cache_<tag>v_l<layer> when it creates them
// (llama_kv_cache's constructor). Empty for others, views and results of ops among them.
std::optional<CacheTensor> cache_tensor(const ggml_tensor* tensor) noexcept;

// Whether a tensor is of a memory module or a weight, as opposed to a graph's temporaries and to views.
bool is_lasting(const ggml_tensor* tensor) noexcept;

// llama_memory_recurrent names its tensors cache_r_l<layer> and cache_s_l<layer>.
bool is_recurrent_state(const ggml_tensor* tensor) noexcept;

// The root of a view: where its memory is.
inline const ggml_tensor* root_of(const ggml_tensor* t) noexcept { return t->view_src ? t->view_src : t; }

}  // namespace mixed_kv::plugin
