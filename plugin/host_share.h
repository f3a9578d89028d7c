#pragma once

#include "ggml-backend-impl.h"

namespace mixed_kv::plugin {

// K and V that llama.cpp keeps in its own memory although the plugin is loaded (-ngl, -nkvo, --device): the
// cache is not mixed there, and somebody who asked for a mixed cache is told so in one line. The hook wraps
// the sizes and buffers of the CPU's buffer type; caches on other devices (a discrete GPU) are not seen.
void install_host_share_hook();

// A context is being made on this thread, with a backend of ours or without.
void note_context(bool has_ours) noexcept;

// K and V tensors of the cache being made on this thread that went to the host's memory, since the last call.
int take_host_tensors() noexcept;

// Says so where a context has a backend of ours and no layer of its cache is on it.
void report_host_share();

}  // namespace mixed_kv::plugin
