#pragma once

#include <cstddef>

// Widths by channel for tiered key blocks: compiled once, for the baseline, and called by every encoder.
namespace mixed_kv::formats {

// Writes the header of a tiered block, order and widths, from the channels' ranges [head_dim] (largest less
// smallest value of the counted rows; finite).
void choose_key_tiers(int code_bits, const float* ranges, int head_dim, std::byte* block) noexcept;

}  // namespace mixed_kv::formats
