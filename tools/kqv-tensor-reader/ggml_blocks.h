#pragma once

#include <cstddef>

#include "trace/ggml_types.h"

// ggml's block types that llama.cpp's caches may have, decoded from their published layout (ggml-common.h),
// so that traces of standard caches can be checked where no ggml is installed.
namespace mixed_kv::trace_tools {

// Writes the block's values (GgmlTypeInfo::block_values of them) to out.
using BlockDecoder = void (*)(const std::byte* block, float* out);

// nullptr: not one of q8_0, q4_0, q4_1, q5_0, q5_1, iq4_nl.
BlockDecoder find_block_decoder(trace::GgmlType type) noexcept;

}  // namespace mixed_kv::trace_tools
