#include "ggml_contract/op_support.h"

#include <new>

#include "fitting.h"
#include "ggml_contract/devices.h"
#include "ggml_contract/nodes.h"
#include "host_cpu.h"
#include "report.h"

namespace mixed_kv::plugin {
namespace {

// In the buffer of a cache or of recurrent state, as opposed to a graph's temporaries.
bool is_persistent(const ggml_tensor* t) {
    return KvBuffer::buffer_of(t) != nullptr &&
           root_of(t)->buffer->usage != GGML_BACKEND_BUFFER_USAGE_COMPUTE;
}

bool in_placeholder(const ggml_tensor* t) {
    const ggml_backend_buffer* buffer = t == nullptr ? nullptr : root_of(t)->buffer;
    return buffer != nullptr && buffer->buft == buffer_type() && buffer->context == nullptr;
}

// The model loader asks whether a weight may live in our buffer by showing it in an empty placeholder buffer.
// No: weights stay where they would be without us. It shows the weight itself, never a view.
bool reads_placeholder(const ggml_tensor* op) {
    for (const ggml_tensor* src : op->src) {
        if (src != nullptr && src->view_src == nullptr && in_placeholder(src)) return true;
    }
    return false;
}

// -sm tensor wraps devices into one and shows weights in its placeholders.
bool reads_wrapped(const ggml_tensor* op) {
    for (const ggml_tensor* src : op->src) {
        const ggml_backend_buffer* buffer = src == nullptr ? nullptr : root_of(src)->buffer;
        ggml_backend_dev_t device = buffer == nullptr ? nullptr : buffer->buft->device;
        if (device != nullptr && is_wrapper(device)) return true;
    }
    return false;
}

// Memory fitting (llama_model_params::no_alloc: --fit, node-llama-cpp's estimates) plans graphs over caches
// whose buffer is such a placeholder. They must be planned like real ones: a refused write aborts the host.
bool uses_placeholder_cache(const ggml_tensor* op) {
    if (in_placeholder(op)) return true;
    for (const ggml_tensor* src : op->src) {
        if (src != nullptr && src->view_src != nullptr && in_placeholder(src)) return true;
    }
    return false;
}

// What a graph that the host reserves shows, for reports before the first compute: heads, and tensors that
// will be pinned, and rows per graph. Contexts may share a cache, and tools may be looking at it.
void learn(const ggml_tensor* op, const Match& match) {
    if (match.kind == OpKind::write) {
        const CacheWrite& write = match.write;
        const std::lock_guard<std::recursive_mutex> lock(write.buffer->mutex);
        if (write.entry->most_rows >= write.n_rows) return;
        write.entry->most_rows = write.n_rows;
        if (write.buffer->settings().budget) Report::instance().note_budgets_changed();
    } else if (match.kind == OpKind::attention) {
        const CacheAttention& attention = match.attention;
        const std::lock_guard<std::recursive_mutex> lock(attention.buffer->mutex);
        attention.v->offered = attention.v_heads();
        attention.k->offered = attention.k_heads();
        if (attention.layer >= 0) attention.buffer->offer_attention(attention.layer);
        attention.k->expected_pin.clear();
        attention.v->expected_pin.clear();
    } else if (match.kind == OpKind::delegate) {
        for_each_cache(op, [&](KvEntry& entry, KvBuffer& buffer) {
            const std::lock_guard<std::recursive_mutex> lock(buffer.mutex);
            entry.expected_pin = pin_reason(op);
        });
    }
}

}  // namespace

bool cpu_supports(const ggml_tensor* op) {
    ggml_backend_dev_t cpu = HostCpu::device();
    if (cpu == nullptr) return false;
    ggml_tensor copy = *op;
    ggml_tensor sources[GGML_MAX_SRC];
    for (int i = 0; i < GGML_MAX_SRC; ++i) {
        if (op->src[i] == nullptr) continue;
        sources[i] = *op->src[i];
        if (KvBuffer::buffer_of(op->src[i]) != nullptr) {
            sources[i].buffer = nullptr;
            sources[i].view_src = nullptr;
        }
        copy.src[i] = &sources[i];
    }
    copy.buffer = nullptr;
    copy.view_src = nullptr;
    return ggml_backend_dev_supports_op(cpu, &copy);
}

bool supports(const ggml_tensor* op) {
    if (is_view_node(op)) return true;
    if (uses_placeholder_cache(op)) return true;
    const bool into_ours = KvBuffer::buffer_of(op) != nullptr;
    bool from_ours = false;
    for (const ggml_tensor* src : op->src) from_ours = from_ours || (src != nullptr && is_persistent(src));
    if (reads_placeholder(op)) {
        note_weight();
        return false;
    }
    if (!into_ours && !from_ours) {
        if (reads_wrapped(op)) note_wrapped_weight();
        return false;
    }

    const Match found = match(op);
    // What is written into our memory cannot be computed anywhere else: the scheduler would abort.
    if (found.kind == OpKind::delegate && !into_ours && !cpu_supports(op)) return false;
    try {
        learn(op, found);
    } catch (const std::bad_alloc&) {  // what is said about the cache is less exact then, no more
    }
    return true;
}

}  // namespace mixed_kv::plugin
