#pragma once

#include <cstddef>

// Widths by channel for tiered key blocks: compiled once, for the baseline, and called by every encoder.
namespace mixed_kv::formats {

// Of the channels [head_dim]; finite.
struct KeySpreads {
    const float* ranges;  // largest less smallest value of the counted rows
    // Smallest difference but 0 of two sampled rows (kSampledRows); the range if there is none, and 0 if
    // fewer rows are counted.
    const float* gaps;
};

// Writes the header of a tiered block, order and widths.
void choose_key_tiers(int code_bits, const KeySpreads& spreads, int head_dim, std::byte* block) noexcept;

}  // namespace mixed_kv::formats
