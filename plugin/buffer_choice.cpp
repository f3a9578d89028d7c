#include "buffer_choice.h"

#include "ggml_contract/tensors.h"
#include "thread_state.h"

namespace mixed_kv::plugin {
namespace {

// Bytes of the recurrent state that was announced last, with nothing else in between.
struct Announced {
    std::size_t recurrent = 0;
};
ThreadState<Announced> announced;

}  // namespace

void note_allocation(const ggml_tensor* tensor, std::size_t alignment) noexcept {
    if (!is_lasting(tensor)) return;
    Announced* state = announced.get();
    if (state == nullptr) return;
    const std::size_t size = (ggml_nbytes(tensor) + alignment - 1) / alignment * alignment;
    state->recurrent = is_recurrent_state(tensor) ? state->recurrent + size : 0;
}

bool is_for_recurrent_state(std::size_t size) noexcept {
    Announced* state = announced.get();
    if (state == nullptr) return false;
    const bool recurrent = size > 0 && state->recurrent == size;
    state->recurrent = 0;
    return recurrent;
}

}  // namespace mixed_kv::plugin
