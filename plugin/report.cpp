#include "report.h"

#include <algorithm>

#include "api.h"
#include "budget.h"
#include "kv_buffer.h"
#include "log.h"
#include "memory_estimate.h"
#include "mixed_kv/error.h"

namespace mixed_kv::plugin {
namespace {

// A later window of lines would grow without bound in a server that creates contexts all day.
constexpr std::size_t kMaxReport = 64 * 1024;

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
    const KvTensor::Counters events = buffer->totals().events;
    retired_freezes_ += events.freezes;
    retired_reencodes_ += events.reencodes;
    retired_promotions_ += events.promotions;
    retired_steps_ += events.steps;
    retired_steps_again_ += events.steps_again;
}

void Report::forget_caches_in_use() noexcept {
    const auto in_use = [](KvBuffer* buffer) {
        if (!buffer->mutex.try_lock()) return true;
        buffer->mutex.unlock();
        return false;
    };
    buffers_.erase(std::remove_if(buffers_.begin(), buffers_.end(), in_use), buffers_.end());
}

void Report::say(bool warning, const std::string& line) {
    if (warning) {
        MIXED_KV_LOG(WARN, "%s", line.c_str());
    } else {
        MIXED_KV_LOG(INFO, "%s", line.c_str());
    }
    std::lock_guard<std::mutex> lock(lines_mutex_);
    lines_ += line + '\n';
    if (lines_.size() > kMaxReport) lines_.erase(0, lines_.find('\n', lines_.size() - kMaxReport) + 1);
}

mixed_kv_counters Report::counters() {
    std::lock_guard<std::mutex> lock(mutex_);
    mixed_kv_counters c{};
    c.freezes = retired_freezes_;
    c.reencodes = retired_reencodes_;
    c.promotions = retired_promotions_;
    c.steps = retired_steps_;
    c.steps_again = retired_steps_again_;
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
            const auto rows = std::uint64_t(entry->tensor->memory().rows_written);
            c.f16_bytes_written += rows * entry->row_bytes;
            c.values_written += rows * entry->row_bytes / sizeof(fp16_t);
        }
        const KvBuffer::Totals totals = buffer->totals();
        c.hot_bytes += totals.memory.hot;
        c.cold_bytes += totals.memory.cold;
        c.overlay_bytes += totals.memory.overlay;
        c.pinned_bytes += totals.memory.pinned;
        c.bookkeeping_bytes += totals.memory.bookkeeping;
        c.rows_written += std::uint64_t(totals.memory.rows_written);
        c.freezes += totals.events.freezes;
        c.reencodes += totals.events.reencodes;
        c.promotions += totals.events.promotions;
        c.steps += totals.events.steps;
        c.steps_again += totals.events.steps_again;
        if (buffer->settings().budget) c.budget_bytes += std::uint64_t(allowed_bytes(*buffer));
    }
    return c;
}

void Report::share_budgets() {
    std::lock_guard<std::mutex> lock(mutex_);
    plugin::share_budgets(buffers_);
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
    std::lock_guard<std::mutex> lock(lines_mutex_);
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
    if (!announce_pending_.load(std::memory_order_relaxed) && !budgets_changed_.exchange(false)) return;
    std::vector<Line> lines;
    {
        std::lock_guard<std::mutex> lock(mutex_);
        try {
            plugin::share_budgets(buffers_);  // by heads as they are now known, and rows that a graph writes
        } catch (const Error& error) {        // the contexts are there: what each may take stays as it is
            lines.push_back({true, error.what()});
        }
        bool all = true;
        for (KvBuffer* buffer : buffers_) {
            std::lock_guard<std::recursive_mutex> buffer_lock(buffer->mutex);
            all = buffer->announce(force, lines) && all;
        }
        if (all) announce_pending_ = false;
    }
    // Not under a lock of ours: the host's log callback is the host's code.
    for (const Line& line : lines) say(line.warning, line.text);
}

}  // namespace mixed_kv::plugin
