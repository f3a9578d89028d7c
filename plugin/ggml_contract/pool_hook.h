#pragma once

#include "ggml-cpu.h"

namespace mixed_kv::plugin {

// Learns the host's CPU thread pool, and gives the host one where it has none.
//
// A host that attaches a polling pool to its CPU backend keeps the cores busy while our ops run: a second
// pool on the same cores costs up to a factor of 100. The host never hands its pool to other backends. But
// llama.cpp asks the CPU registration for ggml_backend_cpu_set_threadpool before each graph, on the thread
// that computes it; the hook wraps that one entry and remembers the pool per thread.
//
// A host without a pool has ggml start threads anew for every split, of which our device makes two per layer.
// Such a CPU backend is lent a pool of ours (thread_pools.h, docs/adr/0007-a-pool-for-hosts-without.md).
void install_pool_hook(ggml_backend_reg_t cpu_registration);

struct HostPool {
    ggml_backend_t cpu = nullptr;      // the host's CPU backend whose pool was set
    ggml_threadpool_t pool = nullptr;  // null: the host has none
    bool fresh = false;                // set since the last call: cpu is alive
};

// What was last set on this thread.
HostPool take_host_pool_of_this_thread();

// ggml's own function, not the wrapped one.
using set_threadpool_t = void (*)(ggml_backend_t, ggml_threadpool_t);
set_threadpool_t original_set_threadpool();

}  // namespace mixed_kv::plugin
