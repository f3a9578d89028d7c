#include "report.h"

#include <algorithm>
#include <cstdio>
#include <cstring>

#include "api.h"
#include "kv_buffer.h"
#include "log.h"
#include "memory_estimate.h"

namespace mixed_kv::plugin {
namespace {

// A later window of lines would grow without bound in a server that creates contexts all day.
constexpr std::size_t kMaxReport = 64 * 1024;

double mib(double bytes) { return bytes / (1024.0 * 1024.0); }

// "q4", or with other formats in some layers "q8 x 2 + q4 x 30".
std::string formats_of(const std::vector<std::unique_ptr<KvEntry>>& entries, KvRole role) {
    std::vector<std::pair<std::string_view, int>> counts;
    for (const auto& entry : entries) {
        if (entry->role != role || entry->tensor == nullptr) continue;
        const std::string_view name = format_name(entry->tensor->config().format);
        const auto found =
            std::find_if(counts.begin(), counts.end(), [&](const auto& c) { return c.first == name; });
        if (found == counts.end()) {
            counts.emplace_back(name, 1);
        } else {
            ++found->second;
        }
    }
    std::string text;
    for (const auto& [name, count] : counts) {
        if (!text.empty()) text += " + ";
        text += name;
        if (counts.size() > 1) text += " x " + std::to_string(count);
    }
    return text;
}

void copy_text(char* out, std::size_t size, std::string_view text) {
    const std::size_t n = std::min(text.size(), size - 1);
    std::memcpy(out, text.data(), n);
    out[n] = '\0';
}

}  // namespace

Report& Report::instance() {
    static Report* report = new Report;  // never destroyed: buffers may outlive static destruction
    return *report;
}

void Report::add(KvBuffer* buffer) {
    std::lock_guard<std::mutex> lock(mutex_);
    buffers_.push_back(buffer);
    announce_pending_ = true;
}

void Report::remove(KvBuffer* buffer) {
    std::lock_guard<std::mutex> lock(mutex_);
    buffers_.erase(std::remove(buffers_.begin(), buffers_.end(), buffer), buffers_.end());
    for (auto& entry : buffer->entries()) {
        if (entry->tensor == nullptr) continue;
        retired_freezes_ += entry->tensor->counters().freezes;
        retired_reencodes_ += entry->tensor->counters().reencodes;
        retired_promotions_ += entry->tensor->counters().promotions;
    }
}

void Report::say(bool warning, const std::string& line) {
    if (warning) {
        MIXED_KV_LOG(WARN, "%s", line.c_str());
    } else {
        MIXED_KV_LOG(INFO, "%s", line.c_str());
    }
    static std::mutex lines_mutex;
    std::lock_guard<std::mutex> lock(lines_mutex);
    lines_ += line + '\n';
    if (lines_.size() > kMaxReport) lines_.erase(0, lines_.find('\n', lines_.size() - kMaxReport) + 1);
}

mixed_kv_counters Report::counters() {
    std::lock_guard<std::mutex> lock(mutex_);
    mixed_kv_counters c{};
    c.freezes = retired_freezes_;
    c.reencodes = retired_reencodes_;
    c.promotions = retired_promotions_;
    c.pins = pins_;
    c.graphs = graphs_;
    c.native_ops = native_ops_;
    c.delegated_ops = delegated_ops_;
    for (KvBuffer* buffer : buffers_) {
        std::lock_guard<std::recursive_mutex> buffer_lock(buffer->mutex);
        if (buffer->entries().empty()) continue;
        ++c.n_caches;
        c.arena_resident_bytes += buffer->arena().bytes_resident();
        c.bookkeeping_bytes += buffer->tracker_bytes();
        for (auto& entry : buffer->entries()) {
            c.f16_bytes_declared += entry->size_bytes();
            if (entry->tensor == nullptr) {
                ++c.n_tensors_plain;
                continue;
            }
            ++(entry->mixed() ? c.n_tensors_mixed : c.n_tensors_pinned);
            const KvTensor::Memory m = entry->tensor->memory();
            c.hot_bytes += m.hot;
            c.cold_bytes += m.cold;
            c.overlay_bytes += m.overlay;
            c.pinned_bytes += m.pinned;
            c.bookkeeping_bytes += m.bookkeeping;
            c.rows_written += std::uint64_t(m.rows_written);
            c.f16_bytes_written += std::uint64_t(m.rows_written) * entry->row_bytes;
            c.values_written += std::uint64_t(m.rows_written) * entry->row_bytes / sizeof(fp16_t);
            c.freezes += entry->tensor->counters().freezes;
            c.reencodes += entry->tensor->counters().reencodes;
            c.promotions += entry->tensor->counters().promotions;
        }
    }
    return c;
}

double Report::expected_bytes() {
    std::lock_guard<std::mutex> lock(mutex_);
    double bytes = 0;
    for (KvBuffer* buffer : buffers_) {
        std::lock_guard<std::recursive_mutex> buffer_lock(buffer->mutex);
        if (!buffer->entries().empty()) bytes += expected_memory(*buffer);
    }
    return bytes;
}

std::string Report::lines() {
    announce_all(true);
    std::lock_guard<std::mutex> lock(mutex_);
    return lines_;
}

std::vector<mixed_kv_tensor_info> Report::tensors() {
    std::lock_guard<std::mutex> lock(mutex_);
    std::vector<mixed_kv_tensor_info> result;
    for (KvBuffer* buffer : buffers_) {
        std::lock_guard<std::recursive_mutex> buffer_lock(buffer->mutex);
        for (auto& entry : buffer->entries()) result.push_back(describe_entry(*entry));
    }
    return result;
}

std::vector<mixed_kv_range> Report::ranges() {
    std::lock_guard<std::mutex> lock(mutex_);
    std::vector<mixed_kv_range> result;
    for (KvBuffer* buffer : buffers_) {
        std::lock_guard<std::recursive_mutex> buffer_lock(buffer->mutex);
        if (buffer->entries().empty()) continue;
        result.push_back({buffer->base(), buffer->base() + buffer->size()});
        for (const auto& [begin, end] : buffer->arena().mappings()) result.push_back({begin, end});
    }
    return result;
}

void Report::announce_all(bool force) {
    if (!announce_pending_.load(std::memory_order_relaxed)) return;
    std::lock_guard<std::mutex> lock(mutex_);
    bool all = true;
    for (KvBuffer* buffer : buffers_) {
        std::lock_guard<std::recursive_mutex> buffer_lock(buffer->mutex);
        all = buffer->announce(force) && all;
    }
    if (all) announce_pending_ = false;
}

mixed_kv_tensor_info describe_entry(const KvEntry& entry) {
    mixed_kv_tensor_info info{};
    copy_text(info.name, sizeof info.name, entry.name);
    copy_text(info.reason, sizeof info.reason, entry.reason);
    info.is_value = entry.role == KvRole::value;
    info.mixed = entry.mixed();
    info.n_cells = entry.n_cells;
    info.n_stream = entry.n_stream;
    const bool known = entry.tensor != nullptr && entry.tensor->head_shape_known();
    const HeadShape shape = known ? entry.tensor->layout().shape : entry.offered;
    info.n_head = shape.n_head;
    info.head_dim = shape.head_dim;
    const ColdFormat* format = entry.mixed() ? entry.tensor->config().format : nullptr;
    copy_text(info.format, sizeof info.format, format_name(format));
    if (format != nullptr && shape.head_dim > 0)
        info.block_bytes = format->block_bytes(entry.role, shape.head_dim);
    if (entry.tensor != nullptr) {
        const KvTensor::Memory m = entry.tensor->memory();
        info.hot_bytes = m.hot;
        info.cold_bytes = m.cold;
        info.overlay_bytes = m.overlay;
        info.pinned_bytes = m.pinned;
        info.rows_written = std::uint64_t(m.rows_written);
    }
    return info;
}

std::string KvBuffer::describe() const {
    int mixed = 0, exact = 0, plain = 0;
    double f16_bytes = 0;
    const double bytes = expected_memory(*this);
    std::int64_t n_cells = 0;
    int n_stream = 0;
    for (const auto& entry : entries_) {
        n_cells = std::max(n_cells, entry->n_cells);
        n_stream = std::max(n_stream, entry->n_stream);
        f16_bytes += double(entry->size_bytes());
        const bool ours = entry->mixed() && entry->expected_pin.empty();
        ++(!ours ? plain : entry->tensor->config().format == nullptr ? exact : mixed);
    }
    std::string rest;
    if (exact > 0) rest += ", " + std::to_string(exact) + " in exact f16";
    if (plain > 0) rest += ", " + std::to_string(plain) + " in plain memory";
    char line[512];
    std::snprintf(line, sizeof line,
                  "cache of %lld cells x %d stream%s: %d of %zu K/V tensors mixed%s, window %d and %d sinks "
                  "per sequence "
                  "in FP16, K %s, V %s, %.2f bits per value at full length, %.1f MiB (F16: %.1f MiB)",
                  static_cast<long long>(n_cells), n_stream, n_stream == 1 ? "" : "s", mixed, entries_.size(),
                  rest.c_str(), settings_.window, settings_.sinks, formats_of(entries_, KvRole::key).c_str(),
                  formats_of(entries_, KvRole::value).c_str(), f16_bytes > 0 ? 16.0 * bytes / f16_bytes : 0.0,
                  mib(bytes), mib(f16_bytes));
    return line;
}

bool KvBuffer::announce(bool force) {
    if (announced_ || entries_.empty()) return true;
    const auto known = [](const auto& e) {
        return !e->mixed() || e->offered.n_head > 0 || !e->expected_pin.empty();
    };
    if (!force && !std::all_of(entries_.begin(), entries_.end(), known)) return false;
    announced_ = true;
    // One line for the first tensor of each reason; the tools list them all.
    std::vector<std::string> said;
    for (const auto& entry : entries_) {
        const std::string& reason = entry->reason.empty() ? entry->expected_pin : entry->reason;
        if (reason.empty() || std::find(said.begin(), said.end(), reason) != said.end()) continue;
        said.push_back(reason);
        Report::instance().say(true, "not in effect for " + entry->name + " and its like: " + reason);
    }
    pin_reasons_.insert(pin_reasons_.end(), said.begin(), said.end());
    const auto stays_mixed = [](const auto& e) { return e->mixed() && e->expected_pin.empty(); };
    if (std::any_of(entries_.begin(), entries_.end(), stays_mixed)) Report::instance().say(false, describe());
    for (const LayerRule& rule : settings_.layers) {
        // No refusal: the draft model of a pair has fewer layers and reads the same setting.
        const int beyond = std::max(rule.first, rule.last);
        const int before = std::min(rule.first, rule.last);
        if (beyond < n_layers_ && before >= -n_layers_) continue;
        Report::instance().say(true, "GGML_MIXED_KV_LAYERS names layer " +
                                         std::to_string(beyond < n_layers_ ? before : beyond) +
                                         ", and this cache has " + std::to_string(n_layers_));
    }
    if (settings_.verbose >= 2) {
        for (const auto& entry : entries_) {
            const mixed_kv_tensor_info info = describe_entry(*entry);
            MIXED_KV_LOG(INFO, "%s: %lld cells x %d, %d heads of %d, %s", info.name,
                         static_cast<long long>(info.n_cells), info.n_stream, info.n_head, info.head_dim,
                         info.mixed != 0 ? info.format : "plain");
        }
    }
    return true;
}

void KvBuffer::say_goodbye() const {
    if (settings_.verbose < 1 || entries_.empty()) return;
    KvTensor::Memory sum;
    KvTensor::Counters events;
    for (const auto& entry : entries_) {
        if (entry->tensor == nullptr) continue;
        const KvTensor::Memory m = entry->tensor->memory();
        sum.hot += m.hot;
        sum.cold += m.cold;
        sum.overlay += m.overlay;
        sum.pinned += m.pinned;
        events.freezes += entry->tensor->counters().freezes;
        events.reencodes += entry->tensor->counters().reencodes;
        events.promotions += entry->tensor->counters().promotions;
    }
    MIXED_KV_LOG(INFO,
                 "cache closed: hot %.2f, cold %.2f, overlay %.2f, pinned %.2f MiB; %llu pages frozen, %llu "
                 "encoded again, "
                 "%llu hot again",
                 mib(double(sum.hot)), mib(double(sum.cold)), mib(double(sum.overlay)),
                 mib(double(sum.pinned)), static_cast<unsigned long long>(events.freezes),
                 static_cast<unsigned long long>(events.reencodes),
                 static_cast<unsigned long long>(events.promotions));
}

void KvBuffer::report_placement() {
    if (placement_reported_ || attended_layers_.empty()) return;
    placement_reported_ = true;
    std::string layers;
    for (int layer : offered_layers_) {
        if (attended_layers_.count(layer) == 0)
            layers += (layers.empty() ? "" : ", ") + std::to_string(layer);
    }
    if (layers.empty()) return;
    Report::instance().say(
        true,
        "attention of layer(s) " + layers +
            " runs on the CPU over decoded copies of the cache (they share another layer's K and V, and "
            "the host's scheduler places them there): right, but slow");
}

}  // namespace mixed_kv::plugin
