#pragma once

#include "ggml-cpu.h"

namespace mixed_kv::plugin {

// Learns the host's CPU thread pool.
//
// A host that attaches a polling pool to its CPU backend keeps the cores busy while our ops run: a second
// pool on the same cores costs up to a factor of 100. The host never hands its pool to other backends. But
// llama.cpp asks the CPU registration for ggml_backend_cpu_set_threadpool before each graph, on the thread
// that computes it; the hook wraps that one entry and remembers the pool per thread. Where a host does not do
// so, there is no pool to share and ours are ggml's disposable threads.
void install_pool_hook(ggml_backend_reg_t cpu_registration);

// The pool last set on this thread; null when none.
ggml_threadpool_t host_pool_of_this_thread();

// ggml's own function, not the wrapped one.
using set_threadpool_t = void (*)(ggml_backend_t, ggml_threadpool_t);
set_threadpool_t original_set_threadpool();

}  // namespace mixed_kv::plugin
