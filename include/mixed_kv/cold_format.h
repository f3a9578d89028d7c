#pragma once

#include <cstddef>
#include <span>
#include <string_view>

namespace mixed_kv {

// Cells of one page. Fixed, so that per-page cell sets are one 64-bit word and kernels have constant trip
// counts (docs/adr/0001-page-of-64-cells.md).
inline constexpr int kPageTokens = 64;

enum class KvRole { key, value };

// A cold format: how one page of one KV head is stored once it leaves the hot window. Keys and values of the
// same format name use different codecs of the same width (docs/cold-formats.md):
//   key    asymmetric, scale and zero point per channel over the page's 64 tokens
//   value  scale per token over head_dim, about the page's mean per channel, in the Hadamard-rotated basis
// Formats live in one registry; kernels, tests and benchmarks enumerate it.
struct ColdFormat {
    std::string_view name;  // "q8", "q4", ... as in GGML_MIXED_KV_K
    int code_bits;          // bits per code, 2..8

    // Bytes of one KV head's encoded page, a multiple of 64. head_dim >= 1.
    std::size_t block_bytes(KvRole role, int head_dim) const noexcept;
    // Stored bits per value, scales and padding included.
    double bits_per_value(KvRole role, int head_dim) const noexcept;
    // Throws Error for bytes that cannot be such a block: a wrong list of widths by channel, a negative
    // scale, or a scale or offset that is no number. Kernels trust their blocks; whoever takes them from
    // elsewhere checks them.
    void check_block(KvRole role, int head_dim, const std::byte* block) const;
};

// All formats, widest first. "f16" is not a cold format: it means that pages stay hot.
std::span<const ColdFormat> cold_formats() noexcept;

// nullptr when no format has this name.
const ColdFormat* find_cold_format(std::string_view name) noexcept;

// Length of the normalised Hadamard transforms applied along a value row: the largest power of two dividing
// head_dim, or 1 (no rotation) when that is below 32. A row holds head_dim / n independent transforms.
int hadamard_size(int head_dim) noexcept;

}  // namespace mixed_kv
