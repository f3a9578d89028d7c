#pragma once

#include <llama.h>

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "common/resident_memory.h"

namespace mixed_kv::tools {

// Whether llama.cpp names a K or V tensor of its cache so.
bool is_kv_tensor_name(const char* name);
// The layer in such a name, "cache_k_l3"; -1 of another one.
int kv_tensor_layer(const char* name);

// Finds the K and V tensors of llama.cpp's own cache. Its public API has no way to them, so this looks at the
// nodes of the first graphs, as an evaluation callback; afterwards the callback costs one call per node.
class HostKvTensors {
  public:
    // For llama_context_params::cb_eval, with this object as user data.
    static bool on_node(ggml_tensor* node, bool ask, void* self);
    // No further look: the first decode is over.
    void seal() { sealed_ = true; }

    bool empty() const { return tensors_.empty(); }
    // Memory of the first n_rows rows of every tensor. Writes to none.
    std::vector<AddressRange> row_ranges(std::int64_t n_rows) const;
    // Memory of the whole tensors.
    std::vector<AddressRange> ranges() const;
    // Bytes and values of those rows, from the tensors' shapes.
    std::uint64_t row_bytes(std::int64_t n_rows) const;
    std::uint64_t row_values(std::int64_t n_rows) const;

  private:
    struct Tensor {
        std::uintptr_t data;
        std::uint64_t bytes;
        std::uint64_t row_bytes;  // of one cell, all heads
        std::int64_t row_values;
        std::int64_t n_rows;  // cells of the first stream
    };
    std::map<std::string, Tensor> tensors_;  // by name
    bool rows_contiguous_ = true;            // false: V transposed (flash attention off), rows lie spread out
    bool sealed_ = false;
};

}  // namespace mixed_kv::tools
