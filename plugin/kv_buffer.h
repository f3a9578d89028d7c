#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "ggml-backend-impl.h"
#include "ggml_contract/tensors.h"
#include "mixed_kv/kv_tensor.h"
#include "mixed_kv/page_arena.h"
#include "mixed_kv/settings.h"
#include "mixed_kv/window_tracker.h"

namespace mixed_kv::plugin {

// One K or V tensor of the host's cache, found by the address of its root tensor.
struct KvEntry {
    std::string name;  // as created; graph code renames roots later
    KvRole role = KvRole::key;
    int layer = 0;
    std::byte* base = nullptr;  // reserved address range: the tensor's unique data pointer
    std::size_t row_bytes = 0;  // one cell's row, all heads
    std::int64_t n_cells = 0;   // per stream
    int n_stream = 1;
    std::unique_ptr<KvTensor> tensor;  // null: the tensor is plain memory (declared type other than F16)
    WindowTracker* tracker = nullptr;
    std::string reason;  // why this tensor is not mixed; empty while it is
    // What the graphs that the host reserves show, for reports before the first compute:
    HeadShape offered;           // heads of a row
    std::string expected_pin;    // why this tensor will be pinned; empty when it will not
    bool attended = false;       // our attention has read it
    std::int64_t most_rows = 0;  // that one graph writes
    std::uint64_t written_epoch = 0;

    std::size_t size_bytes() const noexcept {
        return row_bytes * std::size_t(n_cells) * std::size_t(n_stream);
    }
    bool contains(const void* address) const noexcept {
        const auto* p = static_cast<const std::byte*>(address);
        return p >= base && p < base + size_bytes();
    }
    bool mixed() const noexcept { return tensor != nullptr && !tensor->pinned(); }
};

struct Line;

// What one ggml buffer of our type holds: an address range that is only reserved, plain tensors inside it,
// and the KV tensors whose contents live in pages elsewhere. K/V are recognised when they are created
// (llama.cpp names them cache_k_l<layer> and cache_v_l<layer>); after that the address decides.
class KvBuffer {
  public:
    // Reserves size bytes. Throws Error when the system refuses.
    KvBuffer(std::size_t size, const Settings& settings);
    ~KvBuffer();
    KvBuffer(const KvBuffer&) = delete;
    KvBuffer& operator=(const KvBuffer&) = delete;

    // The KvBuffer behind a ggml buffer; nullptr when it is not ours or an empty placeholder.
    static KvBuffer* of(const ggml_backend_buffer* buffer) noexcept;
    // The entry that holds a tensor or the root of a view; nullptr when it is none of ours.
    static KvEntry* entry_of(const ggml_tensor* tensor) noexcept;
    static KvBuffer* buffer_of(const ggml_tensor* tensor) noexcept;

    void init_tensor(const ggml_tensor* tensor);
    void write(ggml_tensor* tensor, const void* data, std::size_t offset, std::size_t size);
    void fill(ggml_tensor* tensor, std::uint8_t value, std::size_t offset, std::size_t size);
    void read(const ggml_tensor* tensor, void* data, std::size_t offset, std::size_t size);
    bool copy(const ggml_tensor* from, ggml_tensor* to);
    void clear(std::uint8_t value);

    // Turns an entry into plain F16 at its own address, for good, and says so once per reason.
    void pin(KvEntry& entry, const std::string& reason);

    std::byte* base() const noexcept { return base_; }
    std::size_t size() const noexcept { return size_; }
    std::vector<std::unique_ptr<KvEntry>>& entries() noexcept { return entries_; }
    const std::vector<std::unique_ptr<KvEntry>>& entries() const noexcept { return entries_; }
    const PageArena& arena() const noexcept { return arena_; }
    const Settings& settings() const noexcept { return settings_; }
    std::size_t tracker_bytes() const noexcept;

    // The line that says what this cache is; empty when it holds no KV tensors.
    std::string describe() const;
    // Adds to lines, once, what this cache is or why it is not mixed: when the reserved graphs have shown
    // all, or when forced. Returns whether that has been done.
    bool announce(bool force, std::vector<Line>& lines);

    // Over all tensors of the cache.
    struct Totals {
        KvTensor::Memory memory;
        KvTensor::Counters events;
    };
    Totals totals() const;

    // Rows that a graph has written: what their tensor holds beyond its part of a budget steps down before
    // anything else is done to the cache, but not before: until then pages are as the graph's attention read
    // them. noexcept after reserve_due().
    void reserve_due(std::size_t n) { due_.reserve(due_.size() + n); }
    void note_due(KvTensor& tensor, std::int64_t n_rows) noexcept;
    void keep_budget(const KvTensor::Parallel& parallel = {}) noexcept;
    // Host rows are about to come, perhaps before the first graph: under a budget they must not have to stay
    // in FP16 until then.
    void take_offered_heads(KvEntry& entry);

    // With GGML_MIXED_KV_VERBOSE >= 1: what the cache held and did, when it is freed.
    void say_goodbye() const;

    // Layers (of the queries) whose attention over this cache the host has offered us, and those it gave us.
    // A layer that shares another one's K/V may be computed by the CPU over copies; report_placement() says
    // so once, after the first graph.
    void offer_attention(int layer) { offered_layers_.insert(layer); }
    void note_attention(int layer) {
        if (!placement_reported_) attended_layers_.insert(layer);
    }
    void report_placement();

    // Held during every use of the contents. Contexts may share a cache.
    std::recursive_mutex mutex;

  private:
    KvEntry* find(const void* address) noexcept;
    // The tensor of an entry, in the format that the settings give its layer among those known so far.
    void make_tensor(KvEntry& entry, int row_elements);
    WindowTracker* tracker_for(std::int64_t n_cells, int n_stream);

    std::byte* base_ = nullptr;
    std::size_t size_ = 0;
    std::size_t mapped_ = 0;
    Settings settings_;
    PageArena arena_;
    std::vector<std::unique_ptr<WindowTracker>> trackers_;
    std::vector<std::unique_ptr<KvEntry>> entries_;  // by address
    int n_layers_ = 0;                               // the last layer's number + 1
    int n_host_tensors_ = 0;                         // K and V of the same cache in the host's memory
    std::vector<std::string> pin_reasons_;           // said already
    bool announced_ = false;
    struct Due {
        KvTensor* tensor;
        std::int64_t n_rows;
    };
    std::vector<Due> due_;
    std::set<int> offered_layers_, attended_layers_;
    bool placement_reported_ = false;
};

ggml_backend_buffer_type_t buffer_type();

}  // namespace mixed_kv::plugin
