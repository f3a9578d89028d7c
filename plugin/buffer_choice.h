#pragma once

#include <cstddef>

#include "ggml.h"

namespace mixed_kv::plugin {

// Which buffers are ours. ggml asks for a buffer by size alone, but asks for the size of every tensor just
// before that, on the same thread: what these tensors are tells whether we have anything to do with the
// buffer. Recurrent state (cache_r_*, cache_s_*) has no mixed form: in the host's own memory its ops stay in
// the CPU's splits and cost nothing (docs/adr/0006-recurrent-state-stays-with-the-host.md).

// A tensor is about to be given memory.
void note_allocation(const ggml_tensor* tensor, std::size_t alignment) noexcept;

// Whether the buffer of size bytes, which is asked for now, is for recurrent state and nothing else.
bool is_for_recurrent_state(std::size_t size) noexcept;

}  // namespace mixed_kv::plugin
