#include "batch.h"

#include <algorithm>
#include <cstddef>
#include <type_traits>

#include "graphs.h"
#include "thread_sanitizer.h"

namespace mixed_kv::plugin {
namespace {

// Below this many multiply-accumulates one thread is done before others have woken up (about 10 us of work
// against a few us per barrier of a polling pool, and tens for disposable threads).
constexpr double kSerialWork = 200e3;
// Storing a row costs about this much per element, encoding a frozen page several times that.
constexpr double kStoreWork = 1.0;

double attention_work(const AttentionArgs& args, const QueryGroups::Group& queries) {
    const std::int64_t n_tiles = (queries.n + MaskPages::kTileQueries - 1) / MaskPages::kTileQueries;
    const std::int64_t n_pages = (args.n_kv + kPageTokens - 1) / kPageTokens;
    const double per_page = double(kPageTokens) *
                            double(std::min<std::int64_t>(queries.n, MaskPages::kTileQueries)) *
                            double(args.n_head) * double(args.head_dim_k + args.head_dim_v);
    double work = 0;
    for (int s = 0; s < args.n_stream; ++s) {
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
T* rows_from(T* data, std::ptrdiff_t offset_bytes) {
    using Byte = std::conditional_t<std::is_const_v<T>, const std::byte, std::byte>;
    return reinterpret_cast<T*>(reinterpret_cast<Byte*>(data) + offset_bytes);
}

}  // namespace

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
        : store(store_node, batch),
          attend(attend_node, batch),
          merge(merge_node, batch),
          step(step_node, batch) {
        step_only.add(step.get());
        store_only.add(store.get());
        for (CustomNode* node : {&attend, &merge}) attend_only.add(node->get());
        for (CustomNode* node : {&store, &attend, &merge}) all.add(node->get());
    }
    CustomNode store, attend, merge, step;
    Graph store_only{1}, attend_only{2}, all{3}, step_only{1};
};

Batch::Batch(const kernels::KernelSet& kernels, HostCpu& cpu)
    : kernels_(kernels), cpu_(cpu), graphs_(std::make_unique<Graphs>(this)) {}

Batch::~Batch() = default;

bool Batch::can_write(const KvBuffer& buffer, const KvEntry& entry) const noexcept {
    if (empty()) return true;
    // A write after an attention of the same batch would change pages that its plan reads.
    return buffer_ == &buffer && n_attentions_ == 0 &&
           std::none_of(writes_.begin(), writes_.end(),
                        [&](const Write& write) { return write.tensor == entry.tensor.get(); });
}

bool Batch::can_attend(const KvBuffer& buffer) const noexcept { return empty() || buffer_ == &buffer; }

void Batch::lock(KvBuffer& buffer) {
    if (buffer_ == &buffer) return;
    buffer_ = &buffer;
    lock_ = std::unique_lock<std::recursive_mutex>(buffer.mutex);
    keep_budget();
}

void Batch::add_write(const CacheWrite& write, const std::vector<std::int64_t>& cells) {
    lock(*write.buffer);
    KvTensor& tensor = *write.entry->tensor;
    writes_.reserve(writes_.size() + 1);
    write.buffer->reserve_due(writes_.size() + 1);
    tensor.begin_write(cells, write.rows);
    writes_.push_back({&tensor, std::int64_t(cells.size())});
    n_jobs_ += tensor.n_jobs();
    work_ += kStoreWork * double(cells.size()) * double(write.row_elements);
    if (tensor.n_jobs() > 2) work_ += kSerialWork;  // freezing
}

void Batch::add_attention(const CacheAttention& attention, const QueryGroups& queries) {
    lock(*attention.buffer);
    for (const QueryGroups::Group& group : queries.groups()) add_queries(attention, group);
}

void Batch::add_queries(const CacheAttention& attention, const QueryGroups::Group& queries) {
    if (n_attentions_ == attentions_.size())
        attentions_.push_back(std::make_unique<Attention>(kernels_, scratch_));
    Attention& a = *attentions_[n_attentions_];

    AttentionArgs& args = a.args;
    args = attention.args;
    a.k.resize(std::size_t(args.n_stream));
    a.v.resize(std::size_t(args.n_stream));
    for (int s = 0; s < args.n_stream; ++s) {
        a.k[std::size_t(s)] = attention.k->tensor->pages(attention.k_stream + s);
        a.v[std::size_t(s)] = attention.v->tensor->pages(attention.v_stream + s);
    }
    args.k = a.k.data();
    args.v = a.v.data();
    args.n_q = queries.n;
    args.q = rows_from(args.q, queries.first * args.q_row_stride);
    args.mask = queries.mask;
    args.out = rows_from(args.out, queries.first * args.out_row_stride);

    a.mask_pages = &queries.pages;
    work_ += attention_work(args, queries);
    ++n_attentions_;
}

void Batch::store(int) noexcept {
    for (int job = next_job_.fetch_add(1); job < n_jobs_; job = next_job_.fetch_add(1)) {
        int local = job;
        for (const auto& [tensor, n_rows] : writes_) {
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
        order_before(this);
        status = cpu_.compute(graph, false);
        order_after(this);
        store(0);  // does nothing unless the host could not run the graph: rows are never left half stored
    }
    finish();
    return status;
}

void Batch::finish() noexcept {
    for (const Write& write : writes_) {
        write.tensor->end_write();
        buffer_->note_due(*write.tensor, write.n_rows);
    }
    writes_.clear();
    n_attentions_ = 0;
    n_jobs_ = 0;
    work_ = 0;
    buffer_ = nullptr;
    lock_ = {};
}

// What the layer before holds beyond its part of a budget steps down, before this one's rows come.
void Batch::keep_budget() noexcept {
    const auto on_host_threads = [this](std::size_t n, const std::function<void(std::size_t)>& job) {
        step_job_ = &job;
        n_step_jobs_ = n;
        next_step_job_ = 0;
        try {
            if (cpu_.n_threads() > 1) cpu_.compute(graphs_->step_only.get(), false);
        } catch (...) {
        }
        step(0);  // does nothing unless the host could not run the graph, or has one thread
    };
    buffer_->keep_budget(on_host_threads);
}

void Batch::step(int) noexcept {
    for (auto i = next_step_job_.fetch_add(1); i < n_step_jobs_; i = next_step_job_.fetch_add(1))
        (*step_job_)(i);
}

void Batch::step_node(int thread, void* batch) { static_cast<Batch*>(batch)->step(thread); }

void Batch::abandon() noexcept {
    next_job_ = 0;
    store(0);
    finish();
}

}  // namespace mixed_kv::plugin
