#include "host_share.h"

#include <mutex>
#include <string>

#include "border.h"
#include "ggml_contract/table_hook.h"
#include "kv_buffer.h"
#include "report.h"
#include "thread_state.h"

namespace mixed_kv::plugin {
namespace {

struct Share {
    bool has_ours = false;
    int announced = 0;  // K and V whose sizes were asked for last, and what they take
    std::size_t bytes = 0;
    int placing = 0;  // of them, those whose sizes will be asked for again while they are placed
    int in_host_memory = 0;
};
ThreadState<Share> share;

using alloc_buffer_t = ggml_backend_buffer_t (*)(ggml_backend_buffer_type_t, std::size_t);
using alloc_size_t = std::size_t (*)(ggml_backend_buffer_type_t, const ggml_tensor*);
alloc_buffer_t original_alloc_buffer = nullptr;
alloc_size_t original_alloc_size = nullptr;  // null: ggml_nbytes

std::size_t hooked_alloc_size(ggml_backend_buffer_type_t type, const ggml_tensor* tensor) {
    const std::size_t size =
        original_alloc_size == nullptr ? ggml_nbytes(tensor) : original_alloc_size(type, tensor);
    if (tensor->buffer != nullptr || !cache_tensor(tensor)) return size;
    Share* state = share.get();
    if (state == nullptr) return size;
    if (state->placing > 0) {
        --state->placing;
        return size;
    }
    const std::size_t alignment = ggml_backend_buft_get_alignment(type);
    ++state->announced;
    state->bytes += (size + alignment - 1) / alignment * alignment;
    return size;
}

void say(const char* what, int n) {
    Report::instance().say(true, "not in effect: " + std::to_string(n) +
                                     " K/V tensors of a context are in llama.cpp's own memory, " + what);
}

ggml_backend_buffer_t hooked_alloc_buffer(ggml_backend_buffer_type_t type, std::size_t size) {
    ggml_backend_buffer_t buffer = original_alloc_buffer(type, size);
    Share* state = share.get();
    if (state == nullptr || state->announced == 0) return buffer;
    const int n = state->announced;
    const bool is_cache = buffer != nullptr && state->bytes == size;
    state->announced = 0;
    state->bytes = 0;
    if (!is_cache) return buffer;
    state->placing = n;
    if (state->has_ours) {
        state->in_host_memory += n;
    } else {
        at_border("reporting a cache",
                  [&] { say("because the context has no device MixedKV (--device)", n); });
    }
    return buffer;
}

}  // namespace

void install_host_share_hook() {
    static std::once_flag once;
    std::call_once(once, [] {
        ggml_backend_buffer_type_t type = ggml_backend_cpu_buffer_type();
        original_alloc_buffer = type->iface.alloc_buffer;
        original_alloc_size = type->iface.get_alloc_size;
        replace_entry(type->iface.get_alloc_size, hooked_alloc_size);
        replace_entry(type->iface.alloc_buffer, hooked_alloc_buffer);
    });
}

void note_context(bool has_ours) noexcept {
    Share* state = share.get();
    if (state == nullptr) return;
    *state = {};
    state->has_ours = has_ours;
}

int take_host_tensors() noexcept {
    Share* state = share.get();
    if (state == nullptr) return 0;
    const int n = state->in_host_memory;
    state->in_host_memory = 0;
    return n;
}

void report_host_share() {
    const int n = take_host_tensors();
    if (n > 0) say("because none of its layers is offloaded (-ngl) or the cache is not (-nkvo)", n);
}

}  // namespace mixed_kv::plugin
