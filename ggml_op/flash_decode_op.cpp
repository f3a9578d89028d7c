#include "ggml_op/flash_decode_op.h"

#include <exception>
#include <optional>

#include "ggml_op/cold_source.h"
#include "ggml_op/ggml_block_kernels.h"
#include "kernels/contract.h"
#include "mixed_kv/error.h"
#include "mixed_kv/flash_decode.h"

namespace mixed_kv::ggml_op {

namespace {

[[noreturn]] void fail(const std::string& what) { throw Error("flash decoding op: " + what); }

std::string text(std::int64_t n) { return std::to_string(n); }

CachePages::Cells cells_of(const CellList* list) {
    if (list == nullptr) return {};
    return {list->rows, list->pages, true};
}

// KV heads of a hot or cold tensor; 0: there is none.
std::int64_t n_head_kv_of(const ggml_tensor* hot, const ggml_tensor* cold) {
    if (hot != nullptr) return hot->ne[2];
    if (cold == nullptr) return 0;
    return cold->type == GGML_TYPE_I8 ? cold->ne[1] : cold->ne[2];
}

}  // namespace

struct FlashDecodeOp::Impl {
    BlockKernelSet kernels{};
    std::optional<FlashDecode> decode;
    MaskPages mask_pages;
    CachePages k, v;
    PageTable k_table, v_table;
    AttentionArgs args;
    FlashDecodeInputs inputs;
    ggml_tensor* result = nullptr;  // of the attend node: run() writes rows that need no merging
    int n_planned = 0;

    void check(const FlashDecodeInputs& in, const FlashDecodeParams& params);
    void prepare(int n_threads);
    static void prepare_node(ggml_tensor*, int thread, int n_threads, void* self);
    static void attend_node(ggml_tensor*, int thread, int, void* self);
    static void merge_node(ggml_tensor*, int thread, int, void* self);
};

// Everything that shapes decide: the arguments but for data pointers, and both sides' pages.
void FlashDecodeOp::Impl::check(const FlashDecodeInputs& in, const FlashDecodeParams& params) {
    const ggml_tensor* q = in.q;
    if (q == nullptr) fail("q is missing");
    if (q->type != GGML_TYPE_F32 || q->ne[3] != 1) {
        fail(std::string("q is ") + ggml_type_name(q->type) + " with ne[3] = " + text(q->ne[3]) +
             ", not f32 [head_dim, n_q, n_head]");
    }
    if (q->nb[0] != sizeof(float)) fail("q: the values of a row are not contiguous");
    if (q->ne[0] < 1 || q->ne[0] > kernels::kMaxHeadDim)
        fail("head_dim is " + text(q->ne[0]) + ", not 1..1024");
    const std::int64_t n_head_kv = n_head_kv_of(in.k, in.k_quant);
    if (n_head_kv < 1) fail("neither k nor k_quant has heads");
    if (q->ne[2] < 1 || q->ne[2] % n_head_kv != 0) {
        fail(text(q->ne[2]) + " query heads are no multiple of " + text(n_head_kv) + " KV heads");
    }

    std::int64_t head_dim_v = params.head_dim_v;
    if (params.v_is_k) {
        if (in.v != nullptr || in.v_quant != nullptr) fail("v_is_k, but v or v_quant is given");
    } else if (in.v != nullptr) {
        head_dim_v = in.v->ne[0];
    } else if (in.v_quant != nullptr && in.v_quant->type != GGML_TYPE_I8) {
        head_dim_v = in.v_quant->ne[0];
    } else if (head_dim_v == 0) {
        head_dim_v = q->ne[0];  // blocks alone do not tell
    }
    if (head_dim_v < 1 || head_dim_v > kernels::kMaxHeadDim || (params.v_is_k && head_dim_v > q->ne[0])) {
        fail("head_dim_v is " + text(head_dim_v));
    }

    args = {};
    args.n_q = q->ne[1];
    const std::int64_t n_cells = CachePages::default_n_kv(in.k, in.k_quant);
    args.n_kv = params.n_kv >= 0 ? params.n_kv : (in.mask != nullptr ? in.mask->ne[0] : n_cells);
    if (params.k_cells == nullptr && args.n_kv > n_cells) {
        fail("n_kv is " + text(args.n_kv) + ", k and k_quant hold " + text(n_cells) + " cells");
    }
    const std::int64_t v_cells = CachePages::default_n_kv(in.v, in.v_quant);
    if (!params.v_is_k && params.v_cells == nullptr && args.n_kv > v_cells) {
        fail("n_kv is " + text(args.n_kv) + ", v and v_quant hold " + text(v_cells) + " cells");
    }
    args.n_head = int(q->ne[2]);
    args.n_head_kv = int(n_head_kv);
    args.head_dim_k = int(q->ne[0]);
    args.head_dim_v = int(head_dim_v);
    args.v_is_k = params.v_is_k;
    args.kq_scale = params.kq_scale;
    args.max_bias = params.max_bias;
    args.logit_softcap = params.logit_softcap;

    if (const ggml_tensor* m = in.mask) {
        if (m->type != GGML_TYPE_F16 || m->ne[0] != args.n_kv || m->ne[1] < args.n_q || m->ne[2] < 1 ||
            args.n_head % m->ne[2] != 0 || m->ne[3] != 1 || m->nb[0] != sizeof(fp16_t)) {
            fail(std::string("mask is ") + ggml_type_name(m->type) + " [" + text(m->ne[0]) + ", " +
                 text(m->ne[1]) + ", " + text(m->ne[2]) + ", " + text(m->ne[3]) + "], not f16 [" +
                 text(args.n_kv) + ", >= " + text(args.n_q) + ", a divisor of " + text(args.n_head) + ", 1]");
        }
    }
    if (const ggml_tensor* s = in.sinks) {
        if (s->type != GGML_TYPE_F32 || s->ne[0] != args.n_head || ggml_nelements(s) != args.n_head ||
            !ggml_is_contiguous(s)) {
            fail("sinks is not f32 [" + text(args.n_head) + "]");
        }
    }

    k.lay_out("k", {KvRole::key, {args.n_head_kv, args.head_dim_k}, args.n_kv}, in.k, in.k_quant,
              params.k_format, cells_of(params.k_cells), kernels);
    k_table = k.table();
    args.k = &k_table;
    if (args.v_is_k) return;
    v.lay_out("v", {KvRole::value, {args.n_head_kv, args.head_dim_v}, args.n_kv}, in.v, in.v_quant,
              params.v_format, cells_of(params.v_cells), kernels);
    v_table = v.table();
    args.v = &v_table;
}

// Serial: on the first thread, before the others are let into the next node.
void FlashDecodeOp::Impl::prepare(int n_threads) {
    k.fill(inputs.k, inputs.k_quant);
    if (!args.v_is_k) v.fill(inputs.v, inputs.v_quant);
    const ggml_tensor* q = inputs.q;
    args.q = static_cast<const float*>(q->data);
    args.q_row_stride = std::ptrdiff_t(q->nb[1]);
    args.q_head_stride = std::ptrdiff_t(q->nb[2]);
    if (const ggml_tensor* m = inputs.mask) {
        args.mask.data = static_cast<const fp16_t*>(m->data);
        args.mask.row_stride_bytes = std::ptrdiff_t(m->nb[1]);
        args.mask.head_stride_bytes = std::ptrdiff_t(m->nb[2]);
        args.mask.n_head = int(m->ne[2]);
    }
    args.sinks = inputs.sinks == nullptr ? nullptr : static_cast<const float*>(inputs.sinks->data);
    args.out = static_cast<float*>(result->data);
    args.out_head_stride = std::ptrdiff_t(result->nb[1]);
    args.out_row_stride = std::ptrdiff_t(result->nb[2]);
    mask_pages.classify(args.mask, 1, args.n_q, args.n_kv);
    decode->plan(args, mask_pages, n_threads);
    n_planned = n_threads;
}

// ggml calls a node on every thread and waits for all of them before the next one.
void FlashDecodeOp::Impl::prepare_node(ggml_tensor*, int thread, int n_threads, void* self) {
    if (thread != 0) return;
    try {
        static_cast<Impl*>(self)->prepare(n_threads);
    } catch (const std::exception& e) {  // memory, damaged blocks; ggml's C code cannot be unwound
        GGML_ABORT("flash decoding op: %s", e.what());
    }
}

void FlashDecodeOp::Impl::attend_node(ggml_tensor*, int thread, int, void* data) {
    auto* self = static_cast<Impl*>(data);
    if (thread < self->n_planned) self->decode->run(thread);
}

void FlashDecodeOp::Impl::merge_node(ggml_tensor*, int thread, int, void* data) {
    auto* self = static_cast<Impl*>(data);
    if (thread < self->n_planned) self->decode->merge(thread);
}

FlashDecodeOp::FlashDecodeOp() : impl_(std::make_unique<Impl>()) {}
FlashDecodeOp::~FlashDecodeOp() = default;

std::string_view FlashDecodeOp::isa() const noexcept { return impl_->kernels.isa; }

ggml_tensor* FlashDecodeOp::build(ggml_context* ctx, const FlashDecodeInputs& inputs,
                                  const FlashDecodeParams& params) {
    Impl& impl = *impl_;
    if (impl.result != nullptr) fail("build() was called before on this object");
    impl.kernels = block_kernel_set(params.isa);
    impl.check(inputs, params);
    impl.inputs = inputs;
    impl.decode.emplace(*impl.kernels.set);

    // All nodes name all inputs, so that a graph allocator keeps them until the last has run.
    std::vector<ggml_tensor*> sources = {nullptr};  // the node before
    for (ggml_tensor* t :
         {inputs.q, inputs.k, inputs.v, inputs.k_quant, inputs.v_quant, inputs.mask, inputs.sinks}) {
        if (t != nullptr) sources.push_back(t);
    }
    const auto n = int(sources.size());
    ggml_tensor* plan = ggml_custom_4d(ctx, GGML_TYPE_F32, 1, 1, 1, 1, sources.data() + 1, n - 1,
                                       Impl::prepare_node, GGML_N_TASKS_MAX, &impl);
    ggml_set_name(plan, "mixed_kv_plan");
    sources[0] = plan;
    impl.result = ggml_custom_4d(ctx, GGML_TYPE_F32, impl.args.head_dim_v, impl.args.n_head, impl.args.n_q, 1,
                                 sources.data(), n, Impl::attend_node, GGML_N_TASKS_MAX, &impl);
    ggml_set_name(impl.result, "mixed_kv_attend");
    // A view of the attend node, which has written the rows that no merging changes.
    ggml_tensor* merged = ggml_custom_inplace(ctx, impl.result, sources.data() + 1, n - 1, Impl::merge_node,
                                              GGML_N_TASKS_MAX, &impl);
    ggml_set_name(merged, "mixed_kv_merge");
    return merged;
}

}  // namespace mixed_kv::ggml_op
