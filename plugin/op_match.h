#pragma once

#include <string>

#include "kv_buffer.h"

namespace mixed_kv::plugin {

// What we do with a graph node. The same matcher answers supports_op and drives the compute, so they cannot
// disagree.
enum class OpKind {
    view,       // nothing to compute
    write,      // SET_ROWS of whole rows into a mixed tensor
    attention,  // FLASH_ATTN_EXT over mixed tensors
    shift,      // in-place ROPE over every cell of a mixed K tensor (K-shift)
    delegate,   // any other op on our memory: the host's CPU backend computes it; KV tensors it touches are
                // pinned
};

OpKind classify(const ggml_tensor* op);

// Whether this device takes the op. Also learns from the graphs the host reserves: how many heads a row has,
// and which ops will make us pin.
bool supports(const ggml_tensor* op);

// Whether the host's CPU device computes the op. It judges by buffers too and refuses ours, because they are
// not host buffers. Plain and pinned memory of ours is as good as a host buffer, so this asks about the op
// alone.
bool cpu_supports(const ggml_tensor* op);

// For a delegated op: why the KV tensors it touches have to be plain F16.
std::string pin_reason(const ggml_tensor* op);

// The layer an attention belongs to, from the name llama.cpp gives its query (Qcur-<layer>); -1 when there is
// none.
int attention_layer(const ggml_tensor* op);

// First cell (stream * n_cells + cell) of a view of an entry.
std::int64_t first_cell(const KvEntry& entry, const ggml_tensor* view);

}  // namespace mixed_kv::plugin
