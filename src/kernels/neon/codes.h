#pragma once

#include "formats/block_layout.h"
#include "kernels/neon/lanes.h"

// Reads code planes as bytes, 32-bit lanes of four codes each: for keys a lane is a token and the four are
// channels, for values a lane is a channel and the four are tokens. Pictures in docs/data-layout.md. A
// position in the planes serves every field of them, the nibbles and pairs of a byte: field kJ of keys are
// tokens 16 kJ.., field kG of values are the tokens 4 kG.. of 16.
namespace mixed_kv::kernels::neon {
namespace {

using formats::BlockLayout;

// Where the codes of one field begin in each plane: kLanes lanes of them.
struct PlanePointers {
    const std::byte *byte, *nibble, *pair, *single;
};

// Channel group g, tokens 16 field + first.. of the page.
inline PlanePointers key_planes(const std::byte* block, const BlockLayout& l, std::ptrdiff_t g, int field,
                                int first) noexcept {
    return {block + l.byte_plane + g * 256 + field * 64 + first * 4,
            block + l.nibble_plane + g * 128 + field / 2 * 64 + first * 4,
            block + l.pair_plane + g * 64 + first * 4,
            block + l.single_plane + g * 32 + field * 8 + first / 2};
}

// Tokens 16 u + 4 field .. + 3, channels first...
inline PlanePointers value_planes(const std::byte* block, const BlockLayout& l, int u, int field,
                                  int first) noexcept {
    const std::ptrdiff_t row = std::ptrdiff_t(l.dim) * 4;  // plane bytes of four tokens, one code per byte
    const std::ptrdiff_t mask_row = std::ptrdiff_t(l.dim) / 2;  // mask bytes of four tokens
    const int quad = 4 * u + field;
    return {block + l.byte_plane + quad * row + first * 4,
            block + l.nibble_plane + (2 * u + field / 2) * row + first * 4,
            block + l.pair_plane + u * row + first * 4, block + l.single_plane + quad * mask_row + first / 2};
}

inline uint8x16_t load_bytes(const std::byte* p) noexcept {
    return vld1q_u8(reinterpret_cast<const std::uint8_t*>(p));
}

template <int kField>
inline uint8x16_t nibbles(uint8x16_t x) noexcept {
    if constexpr (kField % 2 == 0) {
        return vandq_u8(x, vdupq_n_u8(15));
    } else {
        return vshrq_n_u8(x, 4);
    }
}

// The pairs of field kField, moved to bits kTo and kTo + 1.
template <int kField, int kTo>
inline uint8x16_t pairs(uint8x16_t x) noexcept {
    constexpr int kRight = 2 * kField - kTo;
    if constexpr (kRight == 6) {
        return vshrq_n_u8(x, 6);
    } else if constexpr (kRight > 0) {
        x = vshrq_n_u8(x, kRight);
    } else if constexpr (kRight < 0) {
        x = vshlq_n_u8(x, -kRight);
    }
    return vandq_u8(x, vdupq_n_u8(3 << kTo));
}

// Codes of field kField from the bytes of their planes; single: all bits of a byte set or none.
template <int kBits, int kField>
inline uint8x16_t join_planes(uint8x16_t byte, uint8x16_t nibble, uint8x16_t pair,
                              uint8x16_t single) noexcept {
    constexpr formats::CodePlanes planes = formats::code_planes(kBits);
    uint8x16_t codes = vdupq_n_u8(0);
    if constexpr (planes.byte) codes = byte;
    if constexpr (planes.nibble) codes = nibbles<kField>(nibble);
    if constexpr (planes.pair) {
        const uint8x16_t two = pairs<kField, planes.pair_shift>(pair);
        codes = planes.nibble ? vorrq_u8(codes, two) : two;
    }
    if constexpr (planes.single) {
        codes = vorrq_u8(codes, vandq_u8(single, vdupq_n_u8(1 << planes.single_shift)));
    }
    return codes;
}

// Bit i of two bytes to byte i.
inline uint8x16_t spread_bits(const std::byte* two) noexcept {
    static constexpr std::uint8_t kBit[16] = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
    const uint8x8_t low = vdup_n_u8(std::uint8_t(two[0])), high = vdup_n_u8(std::uint8_t(two[1]));
    return vtstq_u8(vcombine_u8(low, high), vld1q_u8(kBit));
}

// Four lanes: 16 bytes of every plane, 2 of the single one.
struct PlaneBytes {
    uint8x16_t byte, nibble, pair, single;
};

template <int kBits>
inline PlaneBytes load_planes(const PlanePointers& p) noexcept {
    constexpr formats::CodePlanes planes = formats::code_planes(kBits);
    PlaneBytes x{};
    if constexpr (planes.byte) x.byte = load_bytes(p.byte);
    if constexpr (planes.nibble) x.nibble = load_bytes(p.nibble);
    if constexpr (planes.pair) x.pair = load_bytes(p.pair);
    if constexpr (planes.single) x.single = spread_bits(p.single);
    return x;
}

// The codes of four lanes.
template <int kBits, int kField>
inline uint8x16_t load_codes(const PlanePointers& p) noexcept {
    const PlaneBytes x = load_planes<kBits>(p);
    return join_planes<kBits, kField>(x.byte, x.nibble, x.pair, x.single);
}

}  // namespace
}  // namespace mixed_kv::kernels::neon
