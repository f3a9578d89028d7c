#pragma once

#include <bit>
#include <cstdint>
#include <cstring>

#include "mixed_kv/cold_format.h"
#include "mixed_kv/mask_view.h"

namespace mixed_kv::cache {

// Bit t: row[t] is not -inf, for t < n <= 64. Four mask values are handled as one word.
inline std::uint64_t visible_cells(const fp16_t* row, std::int64_t n) noexcept {
    static_assert(std::endian::native == std::endian::little, "lane 0 of a word must be token 0");
    constexpr std::uint64_t kMasked = kMaskedOut * 0x0001000100010001u;
    if (n < kPageTokens) {
        std::uint64_t bits = 0;
        for (std::int64_t t = 0; t < n; ++t) bits |= std::uint64_t{row[t] != kMaskedOut} << t;
        return bits;
    }
    std::uint64_t words[kPageTokens / 4];
    std::memcpy(words, row, sizeof words);
    std::uint64_t differs = 0;
    for (std::uint64_t& word : words) differs |= word ^= kMasked;
    if (differs == 0) return 0;  // most pages of most rows, when several sequences share a cache
    std::uint64_t bits = 0;
    for (int i = 0; i < kPageTokens / 4; ++i) {
        constexpr std::uint64_t kLow = 0x7fff7fff7fff7fffu;
        // Bit 15 of each 16-bit lane that is not zero (no carry crosses a lane), then gathered into four
        // bits.
        const std::uint64_t lanes = (((words[i] & kLow) + kLow) | words[i]) & ~kLow;
        bits |= ((lanes >> 15) * 0x0001000200040008u >> 48 & 0xfu) << (4 * i);
    }
    return bits;
}

}  // namespace mixed_kv::cache
