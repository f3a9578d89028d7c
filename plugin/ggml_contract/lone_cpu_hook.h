#pragma once

#include "ggml-backend-impl.h"

namespace mixed_kv::plugin {

// Contexts that have the host's CPU backend and not ours, but use one of our caches: the draft model of a
// pair may share its target's K and V and have no device of its own. The scheduler finds no backend that can
// use such a cache, and ends the process. The hook wraps the CPU device's init_backend: the CPU backend of a
// context without ours says that it can use our buffers, and pins what its graphs touch before it runs them
// (docs/adr/0023-caches-leave-only-in-words.md).
void install_lone_cpu_hook(ggml_backend_dev_t cpu);

// The next CPU backend made on this thread belongs to the same context as a backend of ours.
void note_backend_of_ours() noexcept;

// A CPU backend for ourselves: as the host's device makes it.
ggml_backend_t new_cpu_backend(ggml_backend_dev_t cpu);

}  // namespace mixed_kv::plugin
