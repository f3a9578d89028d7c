#include "buffer_choice.h"

#include <cstring>
#include <vector>

namespace mixed_kv::plugin {
namespace {

struct Announced {
    std::size_t padded_size;
    bool recurrent;
};

// In the order of announcement. ggml announces tensors a second time while it places them in a buffer, so
// only the last ones that make up a buffer's size count.
thread_local std::vector<Announced> announced;

// More than any buffer has; announcements that no buffer follows must not pile up.
constexpr std::size_t kMaxAnnounced = 64 * 1024;

// llama_memory_recurrent names its tensors so.
bool is_recurrent_state(const char* name) {
    return std::strncmp(name, "cache_r_l", 9) == 0 || std::strncmp(name, "cache_s_l", 9) == 0;
}

}  // namespace

void note_allocation(const ggml_tensor* tensor, std::size_t alignment) {
    if (tensor->op != GGML_OP_NONE || tensor->view_src != nullptr) return;  // a graph's temporaries
    if (announced.size() >= kMaxAnnounced) announced.clear();
    const std::size_t size = (ggml_nbytes(tensor) + alignment - 1) / alignment * alignment;
    announced.push_back({size, is_recurrent_state(tensor->name)});
}

bool is_for_recurrent_state(std::size_t size) {
    std::size_t sum = 0;
    bool all_recurrent = true;
    for (auto it = announced.rbegin(); it != announced.rend() && sum < size; ++it) {
        sum += it->padded_size;
        all_recurrent = all_recurrent && it->recurrent;
    }
    announced.clear();
    return sum == size && size > 0 && all_recurrent;
}

}  // namespace mixed_kv::plugin
