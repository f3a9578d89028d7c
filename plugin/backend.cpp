// The backend: runs the splits that the host's scheduler gives to our device.
#include <atomic>
#include <memory>
#include <vector>

#include "batch.h"
#include "border.h"
#include "device.h"
#include "fitting.h"
#include "fork_guard.h"
#include "ggml_contract/lone_cpu_hook.h"
#include "ggml_contract/nodes.h"
#include "ggml_contract/placement_hook.h"
#include "ggml_contract/pool_hook.h"
#include "graphs.h"
#include "host_cpu.h"
#include "host_share.h"
#include "kv_buffer.h"
#include "mixed_kv/error.h"
#include "report.h"
#include "rope_shift.h"

namespace mixed_kv::plugin {
namespace {

// Names graphs across all contexts: two of them may share a cache.
std::uint64_t next_epoch() {
    static std::atomic<std::uint64_t> epoch{0};
    return ++epoch;
}

class Backend {
  public:
    explicit Backend(const kernels::KernelSet& kernels) : batch_(kernels, cpu_), shifts_(cpu_) {}

    // The host is about to compute a graph.
    void start_graph(int n_threads) {
        cpu_.start_graph(n_threads);
        start_epoch();
    }

    HostCpu& cpu() { return cpu_; }

    // Whatever fails, nothing is left half done: rows announced to a cache are stored, and a K-shift has been
    // done for all layers or for none.
    ggml_status compute(ggml_cgraph* graph) {
        try {
            const ggml_status status = compute_nodes(graph);
            if (status != GGML_STATUS_SUCCESS) shifts_.abandon();
            return status;
        } catch (...) {
            shifts_.abandon();
            batch_.abandon();
            delegated_.clear();
            throw;
        }
    }

  private:
    ggml_status compute_nodes(ggml_cgraph* graph);
    struct CachedMask {
        const void* data;
        std::int64_t n_stream, n_q, n_kv;
        std::unique_ptr<QueryGroups> queries;
        bool valid;
    };

    void start_epoch() {
        epoch_ = next_epoch();
        attended_.clear();
        for (CachedMask& m : masks_) m.valid = false;
    }
    ggml_status flush();
    ggml_status write(const CacheWrite& write);
    ggml_status attend(ggml_tensor* op, const CacheAttention& attention);
    ggml_status run_delegated();
    void pin_caches_of(const ggml_tensor* op);
    bool learn_heads(const CacheAttention& attention);
    const QueryGroups& query_groups(const AttentionArgs& args);

    HostCpu cpu_;
    Batch batch_;
    KeyShifts shifts_;
    std::uint64_t epoch_ = 0;
    std::vector<const ggml_tensor*> attended_;  // of this epoch
    std::vector<CachedMask> masks_;
    std::vector<std::int64_t> cells_;
    std::vector<ggml_tensor*> delegated_;
};

ggml_status Backend::flush() { return batch_.run(); }

ggml_status Backend::write(const CacheWrite& write) {
    KvBuffer& buffer = *write.buffer;
    KvEntry& entry = *write.entry;
    if (!batch_.can_write(buffer, entry)) {
        if (const ggml_status status = flush(); status != GGML_STATUS_SUCCESS) return status;
    }
    std::lock_guard<std::recursive_mutex> lock(buffer.mutex);
    // Hosts that do not announce graphs are recognised by writing the same tensor again.
    if (entry.written_epoch == epoch_) start_epoch();
    if (entry.written_epoch != 0) buffer.report_placement();  // a graph has been computed
    entry.written_epoch = epoch_;
    write.read_cells(cells_);
    if (entry.tracker != nullptr) entry.tracker->on_write(epoch_, cells_);
    batch_.add_write(write, cells_);
    return GGML_STATUS_SUCCESS;
}

// Heads of a row are taken from the first attention that reads it: only then is the cache known to be read by
// us.
bool Backend::learn_heads(const CacheAttention& attention) {
    const auto learn = [&](KvEntry& entry, HeadShape shape) {
        if (entry.tensor->head_shape_known() && entry.tensor->layout().shape == shape) return true;
        std::lock_guard<std::recursive_mutex> lock(attention.buffer->mutex);
        if (flush() != GGML_STATUS_SUCCESS) return false;
        entry.attended = entry.tensor->set_head_shape(shape);
        return entry.attended;
    };
    if (!learn(*attention.k, attention.k_heads())) return false;
    return attention.k == attention.v || learn(*attention.v, attention.v_heads());
}

const QueryGroups& Backend::query_groups(const AttentionArgs& args) {
    CachedMask* slot = nullptr;
    for (CachedMask& m : masks_) {
        if (m.valid && m.data == args.mask.data && m.n_stream == args.n_stream && m.n_q == args.n_q &&
            m.n_kv == args.n_kv)
            return *m.queries;
        if (!m.valid) slot = &m;
    }
    if (slot == nullptr) {
        masks_.push_back({nullptr, 0, 0, 0, std::make_unique<QueryGroups>(), false});
        slot = &masks_.back();
    }
    slot->queries->classify(args.mask, args.n_stream, args.n_q, args.n_kv);
    slot->data = args.mask.data;
    slot->n_stream = args.n_stream;
    slot->n_q = args.n_q;
    slot->n_kv = args.n_kv;
    slot->valid = true;
    return *slot->queries;
}

ggml_status Backend::attend(ggml_tensor* op, const CacheAttention& attention) {
    for (const ggml_tensor* seen : attended_) {
        if (seen == op) {  // the same node again: a new graph of a host that does not announce them
            if (const ggml_status status = flush(); status != GGML_STATUS_SUCCESS) return status;
            start_epoch();
            break;
        }
    }
    attended_.push_back(op);
    KvBuffer& buffer = *attention.buffer;
    if (!batch_.can_attend(buffer)) {
        if (const ggml_status status = flush(); status != GGML_STATUS_SUCCESS) return status;
    }
    std::lock_guard<std::recursive_mutex> lock(buffer.mutex);
    if (!learn_heads(attention)) {
        if (const ggml_status status = flush(); status != GGML_STATUS_SUCCESS) return status;
        pin_caches_of(op);
        delegated_.push_back(op);
        return run_delegated();
    }
    const AttentionArgs& args = attention.args;
    if (WindowTracker* tracker = attention.k->tracker; tracker != nullptr)
        tracker->on_mask(epoch_, args.mask, attention.k_stream, args.n_stream, args.n_q, args.n_kv);
    buffer.note_attention(attention.layer);
    batch_.add_attention(attention, query_groups(args));
    return GGML_STATUS_SUCCESS;
}

void Backend::pin_caches_of(const ggml_tensor* op) {
    for_each_cache(op, [&](KvEntry& entry, KvBuffer& buffer) {
        shifts_.commit();  // the op comes after them
        std::lock_guard<std::recursive_mutex> lock(buffer.mutex);
        buffer.pin(entry, pin_reason(op));
    });
}

ggml_status Backend::run_delegated() {
    if (delegated_.empty()) return GGML_STATUS_SUCCESS;
    Graph graph(delegated_.size());
    for (ggml_tensor* op : delegated_) graph.add(op);
    Report::instance().count_delegated(delegated_.size());
    delegated_.clear();
    return cpu_.compute(graph.get(), true);
}

ggml_status Backend::compute_nodes(ggml_cgraph* graph) {
    Report& report = Report::instance();
    report.announce_all(true);
    report.count_graph();
    if (cpu_.abort_requested()) return GGML_STATUS_ABORTED;

    std::uint64_t native = 0;
    ggml_status status = GGML_STATUS_SUCCESS;
    const int n = ggml_graph_n_nodes(graph);
    for (int i = 0; i < n && status == GGML_STATUS_SUCCESS; ++i) {
        ggml_tensor* op = ggml_graph_node(graph, i);
        if (ggml_is_empty(op) || (op->flags & GGML_TENSOR_FLAG_COMPUTE) == 0) continue;
        const Match node = match(op);
        if (node.kind == OpKind::view) continue;
        // Native and delegated ops take turns; each kind is collected as long as the other does not come
        // between.
        if (node.kind == OpKind::delegate) {
            status = flush();
            if (status != GGML_STATUS_SUCCESS) break;
            pin_caches_of(op);
            delegated_.push_back(op);
            continue;
        }
        status = run_delegated();
        if (status != GGML_STATUS_SUCCESS) break;
        ++native;
        if (node.kind == OpKind::shift) {
            status = flush();
            if (status == GGML_STATUS_SUCCESS) status = shifts_.add(op, node.shift);
            continue;
        }
        shifts_.commit();
        status = node.kind == OpKind::write ? write(node.write) : attend(op, node.attention);
    }
    // Also after a failure: rows that were announced to the cache must be stored.
    const ggml_status flushed = flush();
    if (status == GGML_STATUS_SUCCESS) status = flushed;
    if (status == GGML_STATUS_SUCCESS) status = run_delegated();
    if (status == GGML_STATUS_SUCCESS) shifts_.commit();
    delegated_.clear();
    report.count_native(native);
    return status;
}

Backend& get(ggml_backend_t backend) { return *static_cast<Backend*>(backend->context); }

const char* get_name(ggml_backend_t) { return MIXED_KV_DEVICE_NAME; }

void free_backend(ggml_backend_t backend) {
    delete static_cast<Backend*>(backend->context);
    delete backend;
}

// The host synchronises while it reserves its graphs; by the second time the caches are known.
void synchronize(ggml_backend_t) {
    at_border("saying what the cache is", [] {
        report_host_share();
        Report::instance().announce_all(false);
    });
}

ggml_status graph_compute(ggml_backend_t backend, ggml_cgraph* graph) {
    return at_border("computing a graph", GGML_STATUS_ALLOC_FAILED,
                     [&] { return get(backend).compute(graph); });
}

ggml_guid_t guid() {
    static ggml_guid id = {0x4d, 0x69, 0x78, 0x65, 0x64, 0x4b, 0x56, 0x00,
                           0x9a, 0x1c, 0x52, 0x0e, 0x7f, 0x33, 0xb8, 0x61};
    return &id;
}

}  // namespace

void install_hooks() {
    ggml_backend_dev_t cpu = HostCpu::device();
    if (cpu == nullptr) return;
    install_pool_hook(ggml_backend_dev_backend_reg(cpu));
    install_placement_hook(cpu);
    install_lone_cpu_hook(cpu);
    install_host_share_hook();
    install_fork_guard();
}

ggml_backend_t new_backend(ggml_backend_dev_t dev) {
    if (is_wrapped()) {
        // The one exception that leaves us, on purpose: the device around ours ignores a null pointer and the
        // host aborts later. All callers up to llama_init_from_model, which catches it, are C++.
        throw Error("-sm tensor cannot be used with the mixed cache; -sm layer, the default, can");
    }
    return at_border("no cache", ggml_backend_t(nullptr), [&] {
        settings();  // throws when they were refused
        if (HostCpu::device() == nullptr)
            throw Error("no CPU backend is loaded; the cache needs one beside it");
        install_hooks();
        if (is_fitted_away()) {
            MIXED_KV_LOG(DEBUG, "no layers are given up for memory; --fit ends here");
            return ggml_backend_t(nullptr);
        }
        ggml_backend_i interface = {};
        interface.get_name = get_name;
        interface.free = free_backend;
        interface.synchronize = synchronize;
        interface.graph_compute = graph_compute;
        auto backend = std::make_unique<Backend>(kernel_set_in_use());
        auto* result = new ggml_backend{guid(), interface, dev, backend.get()};
        backend.release();
        note_backend_of_ours();
        return result;
    });
}

bool is_our_backend(ggml_backend_t backend) {
    return backend != nullptr && backend->guid != nullptr && ggml_guid_matches(backend->guid, guid());
}

void set_n_threads(ggml_backend_t backend, int n_threads) {
    if (!is_our_backend(backend)) return;
    at_border("taking the host's threads", [&] { get(backend).start_graph(n_threads); });
}

void set_abort_callback(ggml_backend_t backend, ggml_abort_callback callback, void* data) {
    if (is_our_backend(backend)) get(backend).cpu().set_abort_callback(callback, data);
}

}  // namespace mixed_kv::plugin
