#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>
#include <string>
#include <vector>

#include "mixed_kv_api.h"

namespace mixed_kv::plugin {

class KvBuffer;

struct Line {
    bool warning;
    std::string text;
};

// What the plugin tells people and tools: log lines, counters, the list of live caches.
class Report {
  public:
    static Report& instance();

    void add(KvBuffer* buffer);
    void remove(KvBuffer* buffer);

    // One line, logged and kept for mixed_kv_api.report.
    void say(bool warning, const std::string& line);

    void count_pin() { pins_.fetch_add(1, std::memory_order_relaxed); }
    void count_graph() { graphs_.fetch_add(1, std::memory_order_relaxed); }
    void count_native(std::uint64_t n) { native_ops_.fetch_add(n, std::memory_order_relaxed); }
    void count_delegated(std::uint64_t n) { delegated_ops_.fetch_add(n, std::memory_order_relaxed); }

    mixed_kv_counters counters();
    // Divides budgets among the live caches (budget.h).
    void share_budgets();
    // What depends on how the host uses a cache is known better now: they are divided anew before the next
    // graph.
    void note_budgets_changed() noexcept { budgets_changed_ = true; }
    // What all live caches take when full.
    double expected_bytes();
    std::string lines();
    std::vector<mixed_kv_tensor_info> tensors();
    std::vector<mixed_kv_range> ranges();
    // Lets every cache that has not yet done so say what it is.
    void announce_all(bool force);

    // In a forked child: forgets the caches that other threads were using, whose locks nobody will open.
    // Under the report's own locks.
    void forget_caches_in_use() noexcept;
    // For what must hold all of them (fork_guard.h).
    template <typename Fn>
    void for_each_lock(Fn&& fn) {
        fn(mutex_);
        fn(lines_mutex_);
    }

  private:
    std::mutex mutex_;        // of everything but the lines; taken before a buffer's own
    std::mutex lines_mutex_;  // of the lines; the last one taken
    std::vector<KvBuffer*> buffers_;
    std::string lines_;
    std::uint64_t retired_freezes_ = 0, retired_reencodes_ = 0, retired_promotions_ = 0;
    std::uint64_t retired_steps_ = 0, retired_steps_again_ = 0;
    std::atomic<std::uint64_t> pins_{0}, graphs_{0}, native_ops_{0}, delegated_ops_{0};
    std::atomic<bool> announce_pending_{false}, budgets_changed_{false};
};

}  // namespace mixed_kv::plugin
