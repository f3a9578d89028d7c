#pragma once

#include <mutex>

#include "ggml-cpu.h"

namespace mixed_kv::plugin {

// A ggml thread pool for one context whose host has none. Pools go back to a stock when they are not needed
// any more and are never freed: the host's CPU backend may keep a pointer to one longer than we live.
class PoolLease {
  public:
    PoolLease() = default;
    ~PoolLease() { release(); }
    PoolLease(const PoolLease&) = delete;
    PoolLease& operator=(const PoolLease&) = delete;

    // A pool of at least n_threads threads (the calling one included); the same one as long as it is large
    // enough. Null when the CPU backend offers no pools.
    ggml_threadpool_t acquire(int n_threads);
    void release();
    // Whether the pool's threads are missing: it was made before this process was forked.
    bool is_stale() const noexcept;

    ggml_threadpool_t pool() const noexcept { return pool_; }
    int n_threads() const noexcept { return n_threads_; }

  private:
    ggml_threadpool_t pool_ = nullptr;
    int n_threads_ = 0;
    unsigned generation_ = 0;  // of the process that made the pool
};

std::mutex& stock_mutex();

}  // namespace mixed_kv::plugin
