#include "op_match.h"

#include <cstdlib>
#include <cstring>
#include <new>

#include "fitting.h"
#include "ggml_contract/devices.h"
#include "ggml_contract/ops.h"
#include "host_cpu.h"
#include "kernels/contract.h"
#include "rope_shift.h"

namespace mixed_kv::plugin {
namespace {

bool is_view(ggml_op op) {
    return op == GGML_OP_NONE || op == Ops::reshape || op == Ops::view || op == Ops::permute ||
           op == Ops::transpose;
}

KvEntry* mixed_entry_of(const ggml_tensor* t) {
    KvEntry* entry = KvBuffer::entry_of(t);
    return entry != nullptr && entry->mixed() ? entry : nullptr;
}

std::size_t offset_of(const KvEntry& entry, const ggml_tensor* view) {
    return std::size_t(static_cast<const std::byte*>(view->data) - entry.base);
}

bool is_write(const ggml_tensor* op) {
    const KvEntry* entry = mixed_entry_of(op);
    const ggml_tensor* rows = op->src[0];
    const ggml_tensor* cells = op->src[1];
    return entry != nullptr && op->type == GGML_TYPE_F16 && op->nb[1] == entry->row_bytes &&
           op->ne[0] * std::int64_t(sizeof(fp16_t)) == std::int64_t(entry->row_bytes) &&
           offset_of(*entry, op) % entry->row_bytes == 0 &&
           (rows->type == GGML_TYPE_F32 || rows->type == GGML_TYPE_F16) &&
           rows->nb[0] == ggml_type_size(rows->type) && rows->ne[2] == 1 && rows->ne[3] == 1 &&
           (cells->type == GGML_TYPE_I64 || cells->type == GGML_TYPE_I32) && cells->ne[1] == 1 &&
           cells->ne[2] == 1 && cells->ne[3] == 1;
}

// K or V of an attention: fp16 [stream][cell][head][head_dim] from some stream's cell 0, every head, seen as
// ne = [head_dim, n_kv, n_head, n_stream].
bool is_cache_view(const KvEntry& entry, const ggml_tensor* t, std::int64_t row_elements_used) {
    const std::size_t stream_bytes = entry.row_bytes * std::size_t(entry.n_cells);
    return t->type == GGML_TYPE_F16 && t->nb[0] == sizeof(fp16_t) && t->nb[1] == entry.row_bytes &&
           (t->ne[2] == 1 || t->nb[2] == std::size_t(t->ne[0]) * sizeof(fp16_t)) &&
           (t->ne[3] == 1 || t->nb[3] == stream_bytes) && offset_of(entry, t) % stream_bytes == 0 &&
           t->ne[1] <= entry.n_cells && row_elements_used * sizeof(fp16_t) == entry.row_bytes &&
           t->ne[0] <= kernels::kMaxHeadDim;
}

bool is_attention(const ggml_tensor* op) {
    const ggml_tensor *q = op->src[0], *k = op->src[1], *v = op->src[2], *mask = op->src[3],
                      *sinks = op->src[4];
    const KvEntry* ke = mixed_entry_of(k);
    const KvEntry* ve = mixed_entry_of(v);
    if (ke == nullptr || ve == nullptr || KvBuffer::buffer_of(k) != KvBuffer::buffer_of(v)) return false;
    if (!is_cache_view(*ke, k, k->ne[0] * k->ne[2])) return false;
    if (ke == ve) {  // MLA: V is the first channels of K's only head
        if (k->ne[2] != 1 || v->ne[2] != 1 || v->ne[0] > k->ne[0] || v->data != k->data) return false;
        if (!is_cache_view(*ve, v, k->ne[0])) return false;
    } else if (!is_cache_view(*ve, v, v->ne[0] * v->ne[2])) {
        return false;
    }
    const bool shapes = v->ne[1] == k->ne[1] && v->ne[2] == k->ne[2] && v->ne[3] == k->ne[3] &&
                        q->ne[0] == k->ne[0] && q->ne[2] % k->ne[2] == 0 && q->ne[3] == k->ne[3];
    const bool types = q->type == GGML_TYPE_F32 && q->nb[0] == sizeof(float) && op->type == GGML_TYPE_F32 &&
                       op->nb[0] == sizeof(float);
    const bool mask_fits = mask == nullptr || (mask->type == GGML_TYPE_F16 && mask->nb[0] == sizeof(fp16_t) &&
                                               mask->ne[0] >= k->ne[1] && mask->ne[1] >= q->ne[1] &&
                                               q->ne[2] % mask->ne[2] == 0 && q->ne[3] % mask->ne[3] == 0);
    const bool sinks_fit =
        sinks == nullptr || (sinks->type == GGML_TYPE_F32 && ggml_nelements(sinks) == q->ne[2]);
    return shapes && types && mask_fits && sinks_fit;
}

bool is_shift(const ggml_tensor* op) {
    const KvEntry* entry = mixed_entry_of(op);
    const ggml_tensor *rows = op->src[0], *shifts = op->src[1];
    RotaryPairs pairs;
    int head_dim = 0;
    return entry != nullptr && entry->role == KvRole::key && mixed_entry_of(rows) == entry &&
           rows->data == op->data && op->type == GGML_TYPE_F16 && rows->type == GGML_TYPE_F16 &&
           op->nb[2] == entry->row_bytes && rows->nb[2] == entry->row_bytes && op->ne[3] == 1 &&
           op->ne[2] == entry->n_cells * entry->n_stream && offset_of(*entry, op) < entry->row_bytes &&
           shifts->type == GGML_TYPE_I32 && shifts->ne[0] == op->ne[2] &&
           rotary_pairs(op, offset_of(*entry, op), pairs, head_dim) &&
           std::size_t(op->ne[1]) * op->nb[1] == entry->row_bytes;
}

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

constexpr const char* kFlashAttentionOff = "flash attention is off (turn it on: -fa on)";
constexpr const char* kFlashAttentionExcluded =
    "the model's attention adds a bias to its scores, which excludes flash attention";

// A product with keys although flash attention is on, in which case llama.cpp writes V as rows. Where it is
// off, V has been written transposed, earlier in the same graph.
bool keeps_values_in_rows(const ggml_tensor* op) {
    for (const ggml_tensor* src : op->src) {
        const KvEntry* key = src == nullptr ? nullptr : KvBuffer::entry_of(src);
        if (key == nullptr || key->role != KvRole::key) continue;
        for (const auto& value : KvBuffer::buffer_of(src)->entries()) {
            if (value->role != KvRole::value || value->layer != key->layer) continue;
            return value->expected_pin != kFlashAttentionOff && value->reason != kFlashAttentionOff;
        }
    }
    return false;
}

// Contexts may share a cache, and tools may be looking at it.
void learn(const ggml_tensor* op, OpKind kind) {
    if (kind == OpKind::attention) {
        const ggml_tensor *k = op->src[1], *v = op->src[2];
        const std::lock_guard<std::recursive_mutex> lock(KvBuffer::buffer_of(k)->mutex);
        KvEntry* ke = KvBuffer::entry_of(k);
        KvEntry* ve = KvBuffer::entry_of(v);
        ke->offered = {int(k->ne[2]), int(k->ne[0])};
        if (ve != ke) ve->offered = {int(v->ne[2]), int(v->ne[0])};
        if (const int layer = attention_layer(op); layer >= 0) KvBuffer::buffer_of(k)->offer_attention(layer);
        ke->expected_pin.clear();
        ve->expected_pin.clear();
    } else if (kind == OpKind::delegate) {
        const auto note = [&](const ggml_tensor* t) {
            KvEntry* entry = t == nullptr ? nullptr : mixed_entry_of(t);
            if (entry == nullptr) return;
            const std::lock_guard<std::recursive_mutex> lock(KvBuffer::buffer_of(t)->mutex);
            entry->expected_pin = pin_reason(op);
        };
        note(op);
        for (const ggml_tensor* src : op->src) note(src);
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

int attention_layer(const ggml_tensor* op) {
    const char* name = root_of(op->src[0])->name;
    const char* dash = std::strrchr(name, '-');
    if (dash == nullptr || dash[1] < '0' || dash[1] > '9') return -1;
    return std::atoi(dash + 1);
}

std::int64_t first_cell(const KvEntry& entry, const ggml_tensor* view) {
    return std::int64_t(offset_of(entry, view) / entry.row_bytes);
}

OpKind classify(const ggml_tensor* op) {
    if (is_view(op->op)) return OpKind::view;
    if (op->op == Ops::set_rows && is_write(op)) return OpKind::write;
    if (op->op == Ops::flash_attn_ext && is_attention(op)) return OpKind::attention;
    if (op->op == Ops::rope && is_shift(op)) return OpKind::shift;
    return OpKind::delegate;
}

bool supports(const ggml_tensor* op) {
    if (is_view(op->op)) return true;
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

    const OpKind kind = classify(op);
    // What is written into our memory cannot be computed anywhere else: the scheduler would abort.
    if (kind == OpKind::delegate && !into_ours && !cpu_supports(op)) return false;
    try {
        learn(op, kind);
    } catch (const std::bad_alloc&) {  // what is said about the cache is less exact then, no more
    }
    return true;
}

std::string pin_reason(const ggml_tensor* op) {
    const bool transposed_v = op->op == Ops::set_rows && op->ne[0] == 1;
    if (transposed_v) return kFlashAttentionOff;
    if (op->op == Ops::mul_mat)
        return keeps_values_in_rows(op) ? kFlashAttentionExcluded : kFlashAttentionOff;
    // Values that are in rows, turned for a product.
    if (op->op == Ops::cont && op->src[0]->nb[0] > op->src[0]->nb[1]) return kFlashAttentionExcluded;
    if (op->op == Ops::flash_attn_ext) return "this attention has a shape or type that has no mixed form";
    return std::string("the model uses the cache in an op that has no mixed form (") + ggml_op_name(op->op) +
           ")";
}

}  // namespace mixed_kv::plugin
