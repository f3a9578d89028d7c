#include "ggml_contract/nodes.h"

#include <cstdlib>
#include <cstring>

#include "ggml_contract/ops.h"
#include "kernels/contract.h"

namespace mixed_kv::plugin {
namespace {

KvEntry* mixed_entry_of(const ggml_tensor* t) {
    KvEntry* entry = KvBuffer::entry_of(t);
    return entry != nullptr && entry->mixed() ? entry : nullptr;
}

std::size_t offset_of(const KvEntry& entry, const ggml_tensor* view) {
    return std::size_t(static_cast<const std::byte*>(view->data) - entry.base);
}

// First cell (stream * n_cells + cell) of a view of an entry.
std::int64_t first_cell(const KvEntry& entry, const ggml_tensor* view) {
    return std::int64_t(offset_of(entry, view) / entry.row_bytes);
}

bool match_write(const ggml_tensor* op, CacheWrite& write) {
    KvEntry* entry = mixed_entry_of(op);
    const ggml_tensor *rows = op->src[0], *cells = op->src[1];
    const bool fits = entry != nullptr && op->type == GGML_TYPE_F16 && op->nb[1] == entry->row_bytes &&
                      op->ne[0] * std::int64_t(sizeof(fp16_t)) == std::int64_t(entry->row_bytes) &&
                      offset_of(*entry, op) % entry->row_bytes == 0 &&
                      (rows->type == GGML_TYPE_F32 || rows->type == GGML_TYPE_F16) &&
                      rows->nb[0] == ggml_type_size(rows->type) && rows->ne[2] == 1 && rows->ne[3] == 1 &&
                      (cells->type == GGML_TYPE_I64 || cells->type == GGML_TYPE_I32) && cells->ne[1] == 1 &&
                      cells->ne[2] == 1 && cells->ne[3] == 1;
    if (!fits) return false;
    write = {.buffer = KvBuffer::buffer_of(op),
             .entry = entry,
             .rows = {rows->data, std::ptrdiff_t(rows->nb[1]), rows->type == GGML_TYPE_F16},
             .n_rows = cells->ne[0],
             .row_elements = rows->ne[0],
             .first_cell = first_cell(*entry, op),
             .indices = static_cast<const std::byte*>(cells->data),
             .index_stride = std::ptrdiff_t(cells->nb[0]),
             .wide_indices = cells->type == GGML_TYPE_I64};
    return true;
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

// Of Qcur-<layer>, as llama.cpp names queries; -1 for other names.
int attention_layer(const ggml_tensor* op) {
    const char* name = root_of(op->src[0])->name;
    const char* dash = std::strrchr(name, '-');
    if (dash == nullptr || dash[1] < '0' || dash[1] > '9') return -1;
    return std::atoi(dash + 1);
}

MaskView mask_view(const ggml_tensor* mask) {
    MaskView view;
    if (mask == nullptr) return view;
    view.data = static_cast<const fp16_t*>(mask->data);
    view.row_stride_bytes = std::ptrdiff_t(mask->nb[1]);
    view.head_stride_bytes = std::ptrdiff_t(mask->nb[2]);
    view.stream_stride_bytes = std::ptrdiff_t(mask->nb[3]);
    view.n_head = int(mask->ne[2]);
    view.n_stream = int(mask->ne[3]);
    return view;
}

CacheAttention attention_of(const ggml_tensor* op) {
    const ggml_tensor *q = op->src[0], *k = op->src[1], *v = op->src[2], *sinks = op->src[4];
    CacheAttention attention;
    attention.buffer = KvBuffer::buffer_of(k);
    attention.k = KvBuffer::entry_of(k);
    attention.v = KvBuffer::entry_of(v);
    attention.k_stream = int(first_cell(*attention.k, k) / attention.k->n_cells);
    attention.v_stream = int(first_cell(*attention.v, v) / attention.v->n_cells);
    attention.layer = attention_layer(op);

    AttentionArgs& args = attention.args;
    args.n_stream = int(q->ne[3]);
    args.n_q = q->ne[1];
    args.n_kv = k->ne[1];
    args.n_head = int(q->ne[2]);
    args.n_head_kv = int(k->ne[2]);
    args.head_dim_k = int(k->ne[0]);
    args.head_dim_v = int(v->ne[0]);
    args.q = static_cast<const float*>(q->data);
    args.q_row_stride = std::ptrdiff_t(q->nb[1]);
    args.q_head_stride = std::ptrdiff_t(q->nb[2]);
    args.q_stream_stride = std::ptrdiff_t(q->nb[3]);
    args.v_is_k = attention.k == attention.v;
    args.mask = mask_view(op->src[3]);
    float params[3];
    std::memcpy(params, op->op_params, sizeof params);
    args.kq_scale = params[0];
    args.max_bias = params[1];
    args.logit_softcap = params[2];
    args.sinks = sinks == nullptr ? nullptr : static_cast<const float*>(sinks->data);
    // ggml's result is permuted: ne = [head_dim_v, n_head, n_q, n_stream].
    args.out = static_cast<float*>(op->data);
    args.out_head_stride = std::ptrdiff_t(op->nb[1]);
    args.out_row_stride = std::ptrdiff_t(op->nb[2]);
    args.out_stream_stride = std::ptrdiff_t(op->nb[3]);
    return attention;
}

// A ROPE's op_params.
int n_rotated(const ggml_tensor* rope) { return rope->op_params[1]; }
int rope_mode(const ggml_tensor* rope) { return rope->op_params[2]; }
int first_rotated(const ggml_tensor* rope) { return rope->op_params[15]; }  // in a row of the node

// Where a K-shift's pairs are in a head. False when its ROPE turns anything else.
bool rotary_pairs(const ggml_tensor* op, std::size_t row_offset, CacheShift& shift) {
    const int n_dims = n_rotated(op), mode = rope_mode(op), first = first_rotated(op);
    if (mode != GGML_ROPE_TYPE_NORMAL && mode != GGML_ROPE_TYPE_NEOX) return false;
    shift.head_dim = int(op->nb[1] / sizeof(fp16_t));
    // Partial rotations may start inside a head.
    shift.pairs.first = int(row_offset / sizeof(fp16_t)) + first;
    shift.pairs.n_pairs = n_dims / 2;
    shift.pairs.interleaved = mode == GGML_ROPE_TYPE_NORMAL;
    return op->nb[0] == sizeof(fp16_t) && op->nb[1] % sizeof(fp16_t) == 0 && n_dims > 0 &&
           shift.pairs.first + n_dims <= shift.head_dim && first + n_dims <= op->ne[0];
}

bool match_shift(const ggml_tensor* op, CacheShift& shift) {
    KvEntry* entry = mixed_entry_of(op);
    const ggml_tensor *rows = op->src[0], *distances = op->src[1];
    const bool fits = entry != nullptr && entry->role == KvRole::key && mixed_entry_of(rows) == entry &&
                      rows->data == op->data && op->type == GGML_TYPE_F16 && rows->type == GGML_TYPE_F16 &&
                      op->nb[2] == entry->row_bytes && rows->nb[2] == entry->row_bytes && op->ne[3] == 1 &&
                      op->ne[2] == entry->n_cells * entry->n_stream &&
                      offset_of(*entry, op) < entry->row_bytes && distances->type == GGML_TYPE_I32 &&
                      distances->ne[0] == op->ne[2] && rotary_pairs(op, offset_of(*entry, op), shift) &&
                      std::size_t(op->ne[1]) * op->nb[1] == entry->row_bytes;
    if (!fits) return false;
    shift.buffer = KvBuffer::buffer_of(op);
    shift.entry = entry;
    shift.distances = static_cast<const std::int32_t*>(distances->data);
    shift.n_cells = distances->ne[0];
    shift.row_width = std::size_t(op->ne[0]);
    shift.first_channel = std::size_t(first_rotated(op));
    return true;
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

}  // namespace

void CacheWrite::read_cells(std::vector<std::int64_t>& cells) const {
    cells.resize(std::size_t(n_rows));
    for (std::size_t i = 0; i < cells.size(); ++i) {
        const std::byte* at = indices + std::ptrdiff_t(i) * index_stride;
        cells[i] = first_cell + (wide_indices ? *reinterpret_cast<const std::int64_t*>(at)
                                              : *reinterpret_cast<const std::int32_t*>(at));
    }
}

bool is_view_node(const ggml_tensor* op) {
    return op->op == GGML_OP_NONE || op->op == Ops::reshape || op->op == Ops::view ||
           op->op == Ops::permute || op->op == Ops::transpose;
}

bool is_cache_attention(const ggml_tensor* op) { return op->op == Ops::flash_attn_ext && is_attention(op); }

Match match(const ggml_tensor* op) {
    Match found;
    if (is_view_node(op)) {
        found.kind = OpKind::view;
    } else if (op->op == Ops::set_rows && match_write(op, found.write)) {
        found.kind = OpKind::write;
    } else if (is_cache_attention(op)) {
        found.kind = OpKind::attention;
        found.attention = attention_of(op);
    } else if (op->op == Ops::rope && match_shift(op, found.shift)) {
        found.kind = OpKind::shift;
    }
    return found;
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

HostRope::HostRope(const ggml_tensor* shift, std::size_t n, float* in, float* out,
                   const std::int32_t* positions)
    : rope_(*shift), rows_(*shift->src[0]), positions_(*shift->src[1]) {
    const std::size_t row_bytes = std::size_t(shift->ne[0]) * sizeof(float);
    for (ggml_tensor* t : {&rope_, &rows_}) {
        t->type = GGML_TYPE_F32;
        t->ne[1] = 1;
        t->ne[2] = std::int64_t(n);
        t->nb[0] = sizeof(float);
        t->nb[1] = t->nb[2] = row_bytes;
        t->nb[3] = n * row_bytes;
    }
    positions_.ne[0] = std::int64_t(n);
    for (ggml_tensor* t : {&rope_, &rows_, &positions_}) {
        t->view_src = nullptr;
        t->buffer = nullptr;
    }
    rope_.data = out;
    rows_.data = in;
    positions_.data = const_cast<std::int32_t*>(positions);
    rope_.src[0] = &rows_;
    rope_.src[1] = &positions_;
}

}  // namespace mixed_kv::plugin
