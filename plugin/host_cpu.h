#pragma once

#include <mutex>
#include <thread>
#include <vector>

#include "ggml-backend.h"
#include "ggml-cpu.h"
#include "thread_pools.h"

namespace mixed_kv::plugin {

// A private instance of the host's CPU backend: runs delegated ops, and lends our kernels its threads (as
// GGML_OP_CUSTOM nodes), on the host's own thread pool where there is one.
class HostCpu {
  public:
    HostCpu();
    ~HostCpu();
    HostCpu(const HostCpu&) = delete;
    HostCpu& operator=(const HostCpu&) = delete;

    // The host's CPU device; null when no CPU backend is loaded.
    static ggml_backend_dev_t device();

    // A function of the host's CPU registration; null when it has none of that name.
    template <typename Fn>
    static Fn function(const char* name) {
        return reinterpret_cast<Fn>(function_address(name));
    }

    // Called when the host starts a graph on this thread: how many threads it uses, and which pool.
    void start_graph(int n_threads);
    int n_threads() const noexcept { return n_threads_; }
    void set_abort_callback(ggml_abort_callback callback, void* data);
    bool abort_requested() const;

    // Whether an instance has lent a CPU backend of the host its pool. The host's "no pool" then means ours.
    static bool has_lent_to(ggml_backend_t cpu);

    // Takes the pools back that contexts of this thread were lent, until their next graphs.
    static void take_back_pools_of_this_thread();
    // Before the host gives a CPU backend of its own another pool: in a child process, takes away the one
    // that the backend was lent in the parent.
    static void take_stale_pool_from(ggml_backend_t cpu);

    // Runs a graph on the host's threads. abortable: the abort callback may stop it half-way.
    ggml_status compute(ggml_cgraph* graph, bool abortable);

  private:
    struct Instance {
        ggml_backend_t backend;
        ggml_threadpool_t pool;
    };
    static void* function_address(const char* name);
    ggml_backend_t instance();
    void prepare(ggml_backend_t backend, bool abortable) const;
    void lend_to(ggml_backend_t cpu);
    void take_pool_back();
    void detach_borrower();
    void set_borrower(ggml_backend_t cpu);
    void drop_lent_instances();

    // One instance per pool: switching an instance from one pool to another would pause the former, which the
    // host may have freed by then.
    std::vector<Instance> instances_;
    ggml_threadpool_t pool_ = nullptr;
    PoolLease lease_;                    // for a host without a pool
    ggml_backend_t borrower_ = nullptr;  // the host's CPU backend that has our pool
    std::thread::id user_;               // who computed the last graph
    HostCpu* next_ = nullptr;            // of all instances; the list guards borrower_ and user_, too
    int n_threads_ = GGML_DEFAULT_N_THREADS;
    ggml_abort_callback abort_callback_ = nullptr;
    void* abort_data_ = nullptr;
};

// Of the list of all instances.
std::mutex& host_cpus_mutex();

}  // namespace mixed_kv::plugin
