#pragma once

#include <cstddef>
#include <span>
#include <string>

namespace mixed_kv::tools {

// How a piece of data is packed in a page: "deflate" (zlib's format, as the browser's DecompressionStream
// reads it), or "stored" in builds without zlib.
const char* packing_name() noexcept;

// Packs, then writes as base64.
std::string pack(std::span<const std::byte> bytes);

}  // namespace mixed_kv::tools
