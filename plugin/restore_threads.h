#pragma once

#include <cstddef>
#include <functional>

namespace mixed_kv::plugin {

// Calls job(i) for i = 0 .. n - 1 on as many threads as the process may use processors, the calling one
// included, and returns when all have. The host names no pool when it writes tensors (a restored state), so
// the threads are our own and live for this call only. Where none can be started the calling thread does all.
void run_on_all_processors(std::size_t n, const std::function<void(std::size_t)>& job);

}  // namespace mixed_kv::plugin
