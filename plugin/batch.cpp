#include "batch.h"

#include <algorithm>
#include <cstring>

#include "graphs.h"
#include "op_match.h"

namespace mixed_kv::plugin {
namespace {

// Below this many multiply-accumulates one thread is done before others have woken up (about 10 us of work
// against a few us per barrier of a polling pool, and tens for disposable threads).
constexpr double kSerialWork = 200e3;
// Storing a row costs about this much per element, encoding a frozen page several times that.
constexpr double kStoreWork = 1.0;

double attention_work(const ggml_tensor* op, const QueryGroups::Group& queries) {
    const ggml_tensor *q = op->src[0], *k = op->src[1], *v = op->src[2];
    const std::int64_t n_tiles = (queries.n + MaskPages::kTileQueries - 1) / MaskPages::kTileQueries;
    const std::int64_t n_pages = (k->ne[1] + kPageTokens - 1) / kPageTokens;
    const double per_page = double(kPageTokens) *
                            double(std::min<std::int64_t>(queries.n, MaskPages::kTileQueries)) *
                            double(q->ne[2]) * double(k->ne[0] + v->ne[0]);
    double work = 0;
    for (int s = 0; s < int(q->ne[3]); ++s) {
        for (std::int64_t tile = 0; tile < n_tiles; ++tile) {
            for (std::int64_t page = 0; page < n_pages; ++page) {
                if (queries.pages.kind(s, 0, tile, page) != MaskPages::hidden) work += per_page;
                if (work > kSerialWork) return work;  // enough to know
            }
        }
    }
    return work;
}

template <typename T>
T* rows_from(void* data, std::ptrdiff_t offset_bytes) {
    return reinterpret_cast<T*>(static_cast<std::byte*>(data) + offset_bytes);
}

}  // namespace

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

struct Batch::Attention {
    Attention(const kernels::KernelSet& kernels, const std::shared_ptr<ThreadScratch>& scratch)
        : decode(kernels, scratch) {}
    FlashDecode decode;
    AttentionArgs args;
    std::vector<PageTable> k, v;
    const MaskPages* mask_pages = nullptr;
};

// The three nodes, and the graphs made of them.
struct Batch::Graphs {
    explicit Graphs(Batch* batch)
        : store(store_node, batch), attend(attend_node, batch), merge(merge_node, batch) {
        store_only.add(store.get());
        for (CustomNode* node : {&attend, &merge}) attend_only.add(node->get());
        for (CustomNode* node : {&store, &attend, &merge}) all.add(node->get());
    }
    CustomNode store, attend, merge;
    Graph store_only{1}, attend_only{2}, all{3};
};

Batch::Batch(const kernels::KernelSet& kernels, HostCpu& cpu)
    : kernels_(kernels), cpu_(cpu), graphs_(std::make_unique<Graphs>(this)) {}

Batch::~Batch() = default;

bool Batch::can_write(const KvBuffer& buffer, const KvEntry& entry) const noexcept {
    if (empty()) return true;
    // A write after an attention of the same batch would change pages that its plan reads.
    return buffer_ == &buffer && n_attentions_ == 0 &&
           std::find(writes_.begin(), writes_.end(), entry.tensor.get()) == writes_.end();
}

bool Batch::can_attend(const KvBuffer& buffer) const noexcept { return empty() || buffer_ == &buffer; }

void Batch::lock(KvBuffer& buffer) {
    if (buffer_ == &buffer) return;
    buffer_ = &buffer;
    lock_ = std::unique_lock<std::recursive_mutex>(buffer.mutex);
}

void Batch::add_write(KvBuffer& buffer, KvEntry& entry, const ggml_tensor* op,
                      const std::vector<std::int64_t>& cells) {
    lock(buffer);
    const ggml_tensor* rows = op->src[0];
    writes_.reserve(writes_.size() + 1);
    entry.tensor->begin_write(cells, {rows->data, std::ptrdiff_t(rows->nb[1]), rows->type == GGML_TYPE_F16});
    writes_.push_back(entry.tensor.get());
    n_jobs_ += entry.tensor->n_jobs();
    work_ += kStoreWork * double(cells.size()) * double(rows->ne[0]);
    if (entry.tensor->n_jobs() > 2) work_ += kSerialWork;  // freezing
}

void Batch::add_attention(KvBuffer& buffer, const ggml_tensor* op, const QueryGroups& queries) {
    lock(buffer);
    for (const QueryGroups::Group& group : queries.groups()) add_queries(op, group);
}

void Batch::add_queries(const ggml_tensor* op, const QueryGroups::Group& queries) {
    if (n_attentions_ == attentions_.size())
        attentions_.push_back(std::make_unique<Attention>(kernels_, scratch_));
    Attention& a = *attentions_[n_attentions_];

    const ggml_tensor *q = op->src[0], *k = op->src[1], *v = op->src[2], *sinks = op->src[4];
    const KvEntry& ke = *KvBuffer::entry_of(k);
    const KvEntry& ve = *KvBuffer::entry_of(v);
    const int n_stream = int(q->ne[3]);
    const int k_stream = int(first_cell(ke, k) / ke.n_cells);
    const int v_stream = int(first_cell(ve, v) / ve.n_cells);
    a.k.resize(std::size_t(n_stream));
    a.v.resize(std::size_t(n_stream));
    for (int s = 0; s < n_stream; ++s) {
        a.k[std::size_t(s)] = ke.tensor->pages(k_stream + s);
        a.v[std::size_t(s)] = ve.tensor->pages(v_stream + s);
    }

    AttentionArgs& args = a.args;
    args = {};
    args.n_stream = n_stream;
    args.n_q = queries.n;
    args.n_kv = k->ne[1];
    args.n_head = int(q->ne[2]);
    args.n_head_kv = int(k->ne[2]);
    args.head_dim_k = int(k->ne[0]);
    args.head_dim_v = int(v->ne[0]);
    args.q_row_stride = std::ptrdiff_t(q->nb[1]);
    args.q = rows_from<const float>(q->data, queries.first * args.q_row_stride);
    args.q_head_stride = std::ptrdiff_t(q->nb[2]);
    args.q_stream_stride = std::ptrdiff_t(q->nb[3]);
    args.k = a.k.data();
    args.v = a.v.data();
    args.v_is_k = &ke == &ve;
    args.mask = queries.mask;
    float params[3];
    std::memcpy(params, op->op_params, sizeof params);
    args.kq_scale = params[0];
    args.max_bias = params[1];
    args.logit_softcap = params[2];
    args.sinks = sinks == nullptr ? nullptr : static_cast<const float*>(sinks->data);
    // ggml's result is permuted: ne = [head_dim_v, n_head, n_q, n_stream].
    args.out_head_stride = std::ptrdiff_t(op->nb[1]);
    args.out_row_stride = std::ptrdiff_t(op->nb[2]);
    args.out = rows_from<float>(op->data, queries.first * args.out_row_stride);
    args.out_stream_stride = std::ptrdiff_t(op->nb[3]);

    a.mask_pages = &queries.pages;
    work_ += attention_work(op, queries);
    ++n_attentions_;
}

void Batch::store(int) noexcept {
    for (int job = next_job_.fetch_add(1); job < n_jobs_; job = next_job_.fetch_add(1)) {
        int local = job;
        for (KvTensor* tensor : writes_) {
            if (local < tensor->n_jobs()) {
                tensor->run_job(local);
                break;
            }
            local -= tensor->n_jobs();
        }
    }
}

void Batch::store_node(int thread, void* batch) { static_cast<Batch*>(batch)->store(thread); }

void Batch::attend_node(int thread, void* data) {
    auto* batch = static_cast<Batch*>(data);
    for (std::size_t i = 0; i < batch->n_attentions_; ++i) batch->attentions_[i]->decode.run(thread);
}

void Batch::merge_node(int thread, void* data) {
    auto* batch = static_cast<Batch*>(data);
    for (std::size_t i = 0; i < batch->n_attentions_; ++i) batch->attentions_[i]->decode.merge(thread);
}

ggml_status Batch::run() {
    if (empty()) return GGML_STATUS_SUCCESS;
    const bool serial = cpu_.n_threads() == 1 || work_ < kSerialWork;
    const int n_threads = serial ? 1 : cpu_.n_threads();
    for (std::size_t i = 0; i < n_attentions_; ++i) {
        Attention& a = *attentions_[i];
        a.decode.plan(a.args, *a.mask_pages, n_threads);
    }
    next_job_ = 0;
    ggml_status status = GGML_STATUS_SUCCESS;
    if (serial) {
        store(0);
        for (std::size_t i = 0; i < n_attentions_; ++i) attentions_[i]->decode.run_serial();
    } else {
        ggml_cgraph* graph = n_attentions_ == 0 ? graphs_->store_only.get()
                             : writes_.empty()  ? graphs_->attend_only.get()
                                                : graphs_->all.get();
        status = cpu_.compute(graph, false);
        store(0);  // does nothing unless the host could not run the graph: rows are never left half stored
    }
    finish();
    return status;
}

void Batch::finish() noexcept {
    for (KvTensor* tensor : writes_) tensor->end_write();
    writes_.clear();
    n_attentions_ = 0;
    n_jobs_ = 0;
    work_ = 0;
    buffer_ = nullptr;
    lock_ = {};
}

void Batch::abandon() noexcept {
    next_job_ = 0;
    store(0);
    finish();
}

}  // namespace mixed_kv::plugin
