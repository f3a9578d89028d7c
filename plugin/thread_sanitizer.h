#pragma once

#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
#endif

namespace mixed_kv::plugin {

// For ThreadSanitizer, which sees instrumented code and locks. ggml is neither: it orders the nodes of a
// graph, and the graph's beginning and end, by atomics of its own. What comes before order_before(x) on any
// thread has happened for whoever comes to order_after(x) later.
inline void order_before([[maybe_unused]] void* x) noexcept {
#if defined(__SANITIZE_THREAD__)
    __tsan_release(x);
#endif
}
inline void order_after([[maybe_unused]] void* x) noexcept {
#if defined(__SANITIZE_THREAD__)
    __tsan_acquire(x);
#endif
}

}  // namespace mixed_kv::plugin
