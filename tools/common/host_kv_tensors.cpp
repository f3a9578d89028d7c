#include "common/host_kv_tensors.h"

#include <ggml-backend.h>
#include <ggml.h>

#include <algorithm>
#include <charconv>
#include <cstring>

namespace mixed_kv::tools {

bool is_kv_tensor_name(const char* name) {
    return std::strncmp(name, "cache_k_l", 9) == 0 || std::strncmp(name, "cache_v_l", 9) == 0;
}

int kv_tensor_layer(const char* name) {
    int layer = -1;
    if (is_kv_tensor_name(name)) std::from_chars(name + 9, name + std::strlen(name), layer);
    return layer;
}

bool HostKvTensors::on_node(ggml_tensor* node, bool ask, void* self) {
    auto& found = *static_cast<HostKvTensors*>(self);
    if (found.sealed_ || !ask) {
        return !ask;  // to "is this node's result wanted?": no; after a result: go on
    }
    for (const ggml_tensor* source : node->src) {
        const ggml_tensor* root =
            source == nullptr || source->view_src == nullptr ? source : source->view_src;
        if (root == nullptr || !is_kv_tensor_name(root->name) || root->buffer == nullptr ||
            !ggml_backend_buffer_is_host(root->buffer)) {
            continue;
        }
        found.tensors_[root->name] = {reinterpret_cast<std::uintptr_t>(root->data), ggml_nbytes(root),
                                      root->nb[1], root->ne[0], root->ne[1]};
        // Softmax attention reads V transposed, as rows of n_kv values.
        if (node->op == GGML_OP_MUL_MAT && root->name[6] == 'v') {
            found.rows_contiguous_ = false;
        }
    }
    return false;
}

std::vector<AddressRange> HostKvTensors::ranges() const {
    std::vector<AddressRange> ranges;
    for (const auto& [name, tensor] : tensors_) {
        ranges.push_back({tensor.data, tensor.data + tensor.bytes});
    }
    return ranges;
}

std::vector<AddressRange> HostKvTensors::row_ranges(std::int64_t n_rows) const {
    if (!rows_contiguous_) {
        return ranges();
    }
    std::vector<AddressRange> ranges;
    for (const auto& [name, tensor] : tensors_) {
        const std::uint64_t bytes =
            static_cast<std::uint64_t>(std::min(n_rows, tensor.n_rows)) * tensor.row_bytes;
        ranges.push_back({tensor.data, tensor.data + bytes});
    }
    return ranges;
}

std::uint64_t HostKvTensors::row_bytes(std::int64_t n_rows) const {
    std::uint64_t bytes = 0;
    for (const auto& [name, tensor] : tensors_) {
        bytes += static_cast<std::uint64_t>(std::min(n_rows, tensor.n_rows)) * tensor.row_bytes;
    }
    return bytes;
}

std::uint64_t HostKvTensors::row_values(std::int64_t n_rows) const {
    std::uint64_t values = 0;
    for (const auto& [name, tensor] : tensors_) {
        values += static_cast<std::uint64_t>(std::min(n_rows, tensor.n_rows) * tensor.row_values);
    }
    return values;
}

}  // namespace mixed_kv::tools
