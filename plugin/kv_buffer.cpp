#include "kv_buffer.h"

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <optional>

#include "device.h"
#include "host_share.h"
#include "log.h"
#include "mixed_kv/error.h"
#include "report.h"
#include "restore_threads.h"

namespace mixed_kv::plugin {
namespace {

constexpr std::size_t kOsPage = 4096;

std::size_t round_up(std::size_t n, std::size_t unit) { return (n + unit - 1) / unit * unit; }

std::size_t offset_in(const KvEntry& entry, const ggml_tensor* tensor, std::size_t offset) {
    return std::size_t(static_cast<const std::byte*>(tensor->data) - entry.base) + offset;
}

}  // namespace

KvBuffer::KvBuffer(std::size_t size, const Settings& settings) : size_(size), settings_(settings) {
    mapped_ = round_up(std::max<std::size_t>(size, 1), kOsPage);
    // Reserve only: tensors get unique addresses, memory is committed by the pages that are pinned or plain.
    void* p =
        mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) {
        throw Error("cannot reserve " + std::to_string(mapped_ >> 20) +
                    " MiB of address space for the KV cache: " + std::strerror(errno));
    }
    madvise(p, mapped_, MADV_NOHUGEPAGE);
    base_ = static_cast<std::byte*>(p);
    Report::instance().add(this);
}

KvBuffer::~KvBuffer() {
    say_goodbye();
    Report::instance().remove(this);
    entries_.clear();
    if (settings_.budget) {
        try {
            Report::instance().share_budgets();
        } catch (const std::exception&) {  // no memory: the others keep what they have
        }
    }
    munmap(base_, mapped_);
}

KvEntry* KvBuffer::find(const void* address) noexcept {
    auto it = std::upper_bound(entries_.begin(), entries_.end(), address, [](const void* a, const auto& e) {
        return static_cast<const std::byte*>(a) < e->base;
    });
    if (it == entries_.begin()) return nullptr;
    KvEntry* entry = std::prev(it)->get();
    return entry->contains(address) ? entry : nullptr;
}

KvBuffer* KvBuffer::of(const ggml_backend_buffer* buffer) noexcept {
    if (buffer == nullptr || buffer->buft != buffer_type()) return nullptr;
    return static_cast<KvBuffer*>(buffer->context);  // null for placeholders
}

KvBuffer* KvBuffer::buffer_of(const ggml_tensor* tensor) noexcept {
    return tensor == nullptr ? nullptr : of(root_of(tensor)->buffer);
}

KvEntry* KvBuffer::entry_of(const ggml_tensor* tensor) noexcept {
    KvBuffer* buffer = buffer_of(tensor);
    return buffer == nullptr ? nullptr : buffer->find(root_of(tensor)->data);
}

WindowTracker* KvBuffer::tracker_for(std::int64_t n_cells, int n_stream) {
    for (auto& tracker : trackers_) {
        if (tracker->config().n_cells == n_cells && tracker->config().n_stream == n_stream)
            return tracker.get();
    }
    trackers_.push_back(std::make_unique<WindowTracker>(
        WindowTracker::Config{n_cells, n_stream, settings_.window, settings_.sinks}));
    return trackers_.back().get();
}

void KvBuffer::init_tensor(const ggml_tensor* tensor) {
    const std::optional<CacheTensor> created = cache_tensor(tensor);
    if (!created || find(tensor->data) != nullptr) return;
    if (entries_.empty()) n_host_tensors_ = take_host_tensors();

    auto entry = std::make_unique<KvEntry>();
    entry->name = tensor->name;
    entry->role = created->role;
    entry->layer = created->layer;
    entry->base = static_cast<std::byte*>(tensor->data);
    entry->row_bytes = created->row_bytes;
    entry->n_cells = created->n_cells;
    entry->n_stream = created->n_stream;
    if (!created->is_f16) {
        entry->reason =
            std::string("the cache type is ") + ggml_type_name(tensor->type) + ", mixed storage needs f16";
    } else {
        entry->tracker = tracker_for(entry->n_cells, entry->n_stream);
        make_tensor(*entry, created->row_elements);
    }
    auto at = std::upper_bound(entries_.begin(), entries_.end(), entry->base,
                               [](const std::byte* a, const auto& e) { return a < e->base; });
    entries_.insert(at, std::move(entry));
    if (created->layer < n_layers_) return;
    // Rules may count layers from the last one, which is known when the last tensor has come. Nothing has
    // been written yet.
    n_layers_ = created->layer + 1;
    for (auto& known : entries_) {
        if (known->tensor != nullptr) make_tensor(*known, known->tensor->config().row_elements);
    }
}

void KvBuffer::make_tensor(KvEntry& entry, int row_elements) {
    if (settings_.allocation != nullptr) {
        (void)settings_.allocation->format(entry.role, entry.layer,
                                           row_elements);  // throws for another model
    }
    KvTensor::Config config;
    config.role = entry.role;
    config.n_cells = entry.n_cells;
    config.n_stream = entry.n_stream;
    config.row_elements = row_elements;
    config.format = settings_.format(entry.role, entry.layer, std::max(n_layers_, entry.layer + 1));
    config.kernels = &kernel_set_in_use();
    config.arena = &arena_;
    config.tracker = entry.tracker;
    config.parallel = run_on_all_processors;
    if (settings_.budget) {
        config.ladder = settings_.ladder;
        config.format = settings_.ladder.front();
    }
    if (entry.tensor != nullptr && entry.tensor->config().format == config.format) return;
    entry.tensor = std::make_unique<KvTensor>(config);
}

void KvBuffer::note_due(KvTensor& tensor, std::int64_t n_rows) noexcept {
    if (tensor.has_ladder() && due_.size() < due_.capacity()) due_.push_back({&tensor, n_rows});
}

void KvBuffer::keep_budget(const KvTensor::Parallel& parallel) noexcept {
    for (const Due& due : due_) due.tensor->keep_allowance(due.n_rows, parallel);
    due_.clear();
}

void KvBuffer::take_offered_heads(KvEntry& entry) {
    if (settings_.budget && !entry.tensor->head_shape_known() && entry.offered.n_head > 0)
        (void)entry.tensor->set_head_shape(entry.offered);
}

void KvBuffer::write(ggml_tensor* tensor, const void* data, std::size_t offset, std::size_t size) {
    KvEntry* entry = find(root_of(tensor)->data);
    if (entry == nullptr || !entry->mixed()) {
        std::memcpy(static_cast<std::byte*>(tensor->data) + offset, data, size);
    } else {
        keep_budget();
        take_offered_heads(*entry);
        entry->tensor->write_bytes(offset_in(*entry, tensor, offset), data, size);
    }
}

void KvBuffer::fill(ggml_tensor* tensor, std::uint8_t value, std::size_t offset, std::size_t size) {
    KvEntry* entry = find(root_of(tensor)->data);
    if (entry == nullptr || !entry->mixed()) {
        std::memset(static_cast<std::byte*>(tensor->data) + offset, value, size);
    } else {
        entry->tensor->fill_bytes(offset_in(*entry, tensor, offset), value, size);
    }
}

void KvBuffer::read(const ggml_tensor* tensor, void* data, std::size_t offset, std::size_t size) {
    KvEntry* entry = find(root_of(tensor)->data);
    if (entry == nullptr || !entry->mixed()) {
        std::memcpy(data, static_cast<const std::byte*>(tensor->data) + offset, size);
    } else {
        entry->tensor->read_bytes(offset_in(*entry, tensor, offset), data, size);
    }
}

bool KvBuffer::copy(const ggml_tensor* from, ggml_tensor* to) {
    KvBuffer* source = buffer_of(from);
    if (source == nullptr || ggml_nbytes(from) != ggml_nbytes(to)) return false;
    // Two buffers are locked in address order, so that copies in both directions cannot block each other.
    std::unique_lock<std::recursive_mutex> first(std::min(source, this)->mutex);
    std::unique_lock<std::recursive_mutex> second(std::max(source, this)->mutex);

    const std::size_t size = ggml_nbytes(from);
    KvEntry* a = source->find(root_of(from)->data);
    KvEntry* b = find(root_of(to)->data);
    if (a != nullptr && b != nullptr && a->mixed() && b->mixed() && a->row_bytes == b->row_bytes) {
        const std::size_t from_offset = offset_in(*a, from, 0);
        const std::size_t to_offset = offset_in(*b, to, 0);
        if (from_offset % a->row_bytes == 0 && to_offset % a->row_bytes == 0 && size % a->row_bytes == 0) {
            const auto from_cell = std::int64_t(from_offset / a->row_bytes);
            const auto to_cell = std::int64_t(to_offset / a->row_bytes);
            const auto n = std::int64_t(size / a->row_bytes);
            keep_budget();
            take_offered_heads(*b);
            b->tensor->copy_rows(*a->tensor, from_cell, to_cell, n);
            return true;
        }
    }
    std::vector<std::byte> bytes(std::min<std::size_t>(size, 1 << 20));
    for (std::size_t done = 0; done < size; done += bytes.size()) {
        const std::size_t n = std::min(bytes.size(), size - done);
        source->read(from, bytes.data(), done, n);
        write(to, bytes.data(), done, n);
    }
    return true;
}

void KvBuffer::clear(std::uint8_t value) {
    for (auto& tracker : trackers_) tracker->clear();
    for (auto& entry : entries_) {
        if (entry->mixed()) entry->tensor->clear();
    }
    if (value == 0) {
        // Private anonymous memory reads as zero again, and takes none.
        madvise(base_, mapped_, MADV_DONTNEED);
        return;
    }
    std::byte* at = base_;
    for (auto& entry : entries_) {
        if (!entry->mixed()) continue;
        std::memset(at, value, std::size_t(entry->base - at));
        entry->tensor->fill_bytes(0, value, entry->size_bytes());
        at = entry->base + entry->size_bytes();
    }
    std::memset(at, value, std::size_t(base_ + size_ - at));
}

void KvBuffer::pin(KvEntry& entry, const std::string& reason) {
    if (!entry.mixed()) return;
    entry.tensor->pin(entry.base);
    entry.reason = reason;
    Report::instance().count_pin();
    if (std::find(pin_reasons_.begin(), pin_reasons_.end(), reason) != pin_reasons_.end()) return;
    pin_reasons_.push_back(reason);
    Report::instance().say(true, entry.name + " and tensors used alike are kept in plain F16: " + reason);
}

std::size_t KvBuffer::tracker_bytes() const noexcept {
    std::size_t bytes = 0;
    for (const auto& tracker : trackers_) bytes += tracker->memory_bytes();
    return bytes;
}

}  // namespace mixed_kv::plugin
