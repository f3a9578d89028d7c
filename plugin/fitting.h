#pragma once

#include <cstddef>
#include <optional>

#include "ggml.h"
#include "mixed_kv/settings.h"

namespace mixed_kv::plugin {

// llama.cpp's --fit measures before it loads: it makes contexts whose caches are only counted, asks the
// device how much memory it has, shortens the context if it may, and otherwise takes layers from the device.
// For us the last would mean no mixed cache and no word about it, for less memory than without us. So a
// measured cache is answered by what it would really take, and a measurement without us after one that did
// not fit is refused: --fit then gives up, and the context is created as asked for, or refused for its limit
// (docs/adr/0023-caches-leave-only-in-words.md). What is known is known per thread.

// The host counts a tensor of ours that it does not place.
void note_counted(const ggml_tensor* tensor) noexcept;
// The host's model loader has shown us a weight: the model being loaded has layers on our device.
void note_weight() noexcept;
// The same, but what has been shown is a device that -sm tensor has put around ours.
void note_wrapped_weight() noexcept;
// A real cache has been made.
void note_cache() noexcept;

// What to report as free when the host has just counted a cache: more than it could ask for when the cache
// fits into the limit and into `available` bytes, else what the longest context that fits has in F16, and the
// margin that --fit wants to leave. Nothing when no cache has been counted.
std::optional<std::size_t> free_for_counted(std::size_t available, const Settings& settings);

// Whether the backend that is asked for now is for a measurement with fewer layers on us because the last one
// did not fit.
bool is_fitted_away() noexcept;

// Whether the backend that is asked for now is for a model split by tensors.
bool is_wrapped() noexcept;

}  // namespace mixed_kv::plugin
