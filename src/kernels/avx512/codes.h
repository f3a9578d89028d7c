#pragma once

#include "formats/block_layout.h"
#include "kernels/avx512/simd.h"

// Reads code planes as bytes: 16 lanes of 32 bits, each with four codes. For keys a lane is a token and the
// four are channels; for values a lane is a channel and the four are tokens. Pictures in docs/data-layout.md.
namespace mixed_kv::kernels::avx512 {
namespace {

using formats::BlockLayout;

template <int kShift>
inline __m512i shift_right(__m512i x) noexcept {
    if constexpr (kShift > 0) {
        x = _mm512_srli_epi16(x, kShift);
    } else if constexpr (kShift < 0) {
        x = _mm512_slli_epi16(x, -kShift);
    }
    return x;
}

// Bits [kFrom, kFrom + kWidth) of every byte, moved to bit kTo.
template <int kFrom, int kTo, int kWidth>
inline __m512i move_bits(__m512i x) noexcept {
    constexpr int kMask = ((1 << kWidth) - 1) << kTo;
    return _mm512_and_si512(shift_right<kFrom - kTo>(x), _mm512_set1_epi8(static_cast<char>(kMask)));
}

// codes | two bits of every byte of x from bit kFrom, moved to bits 4 and 5: one instruction beside the
// shift.
template <int kFrom>
inline __m512i add_pair_4(__m512i codes, __m512i x) noexcept {
    constexpr int kAndOr = 0xea;  // (a & b) | c
    return _mm512_ternarylogic_epi32(shift_right<kFrom - 4>(x), _mm512_set1_epi8(0x30), codes, kAndOr);
}

// codes + (1 << kTo) in every byte whose bit of the 64-bit mask is set.
template <int kTo>
inline __m512i add_single(__m512i codes, const std::byte* mask) noexcept {
    std::uint64_t bits;
    std::memcpy(&bits, mask, sizeof bits);
    return _mm512_mask_add_epi8(codes, bits, codes, _mm512_set1_epi8(static_cast<char>(1 << kTo)));
}

// Keys keep codes where they lie in the byte when that saves a shift: sums of vector kJ come out multiplied
// by 2^key_shift, exactly, and are shifted back at the end of the page.
constexpr int key_shift(int bits, int j) {
    return bits == 4 ? j % 2 * 4 : bits == 2 ? 2 * j : bits == 3 && j < 3 ? 2 * j : 0;
}

// Whether vector kJ's bytes are left whole, so that its sums contain those of vector kJ + 1 as they are.
constexpr bool key_contains_next(int bits, int j) { return bits == 4 && j % 2 == 0; }

// Channel group g, tokens 16 kJ.. + 15.
template <int kBits, int kJ>
inline __m512i key_codes(const std::byte* block, const BlockLayout& l, int g) noexcept {
    constexpr formats::CodePlanes planes = formats::code_planes(kBits);
    constexpr int kTo = key_shift(kBits, kJ);
    __m512i codes{};
    if constexpr (planes.byte) {
        codes = load_i(block + l.byte_plane + std::size_t(g) * 256 + kJ * 64);
    }
    if constexpr (planes.nibble) {
        const __m512i x = load_i(block + l.nibble_plane + std::size_t(g) * 128 + kJ / 2 * 64);
        codes = key_contains_next(kBits, kJ) ? x : move_bits<kJ % 2 * 4, kTo, 4>(x);
    }
    if constexpr (planes.pair) {
        const __m512i x = load_i(block + l.pair_plane + std::size_t(g) * 64);
        codes = planes.nibble ? add_pair_4<2 * kJ>(codes, x) : move_bits<2 * kJ, kTo, 2>(x);
    }
    if constexpr (planes.single) {
        codes = add_single<planes.single_shift + kTo>(codes,
                                                      block + l.single_plane + std::size_t(g) * 32 + kJ * 8);
    }
    return codes;
}

// The same as codes, nothing but codes.
template <int kBits, int kJ>
inline __m512i plain_key_codes(const std::byte* block, const BlockLayout& l, int g) noexcept {
    constexpr formats::CodePlanes planes = formats::code_planes(kBits);
    __m512i codes{};
    if constexpr (planes.byte) {
        codes = load_i(block + l.byte_plane + std::size_t(g) * 256 + kJ * 64);
    }
    if constexpr (planes.nibble) {
        codes =
            move_bits<kJ % 2 * 4, 0, 4>(load_i(block + l.nibble_plane + std::size_t(g) * 128 + kJ / 2 * 64));
    }
    if constexpr (planes.pair) {
        const __m512i x = load_i(block + l.pair_plane + std::size_t(g) * 64);
        codes = planes.nibble ? add_pair_4<2 * kJ>(codes, x) : move_bits<2 * kJ, 0, 2>(x);
    }
    if constexpr (planes.single) {
        codes = add_single<planes.single_shift>(codes, block + l.single_plane + std::size_t(g) * 32 + kJ * 8);
    }
    return codes;
}

// Tokens 4 (4 u + kG).. + 3, channels 16 v.. + 15.
template <int kBits, int kG>
inline __m512i value_codes(const std::byte* block, const BlockLayout& l, int u, int v) noexcept {
    constexpr formats::CodePlanes planes = formats::code_planes(kBits);
    const std::size_t row = std::size_t(l.dim) * 4;       // plane bytes of four tokens, one code per byte
    const std::size_t mask_row = std::size_t(l.dim) / 2;  // mask bytes of four tokens
    const std::ptrdiff_t column = std::ptrdiff_t(v) * 64;
    __m512i codes{};
    if constexpr (planes.byte) {
        codes = load_i(block + l.byte_plane + (4 * u + kG) * row + column);
    }
    if constexpr (planes.nibble) {
        codes = move_bits<kG % 2 * 4, 0, 4>(load_i(block + l.nibble_plane + (2 * u + kG / 2) * row + column));
    }
    if constexpr (planes.pair) {
        const __m512i x = load_i(block + l.pair_plane + u * row + column);
        codes = planes.nibble ? add_pair_4<2 * kG>(codes, x) : move_bits<2 * kG, 0, 2>(x);
    }
    if constexpr (planes.single) {
        codes = add_single<planes.single_shift>(
            codes, block + l.single_plane + (4 * u + kG) * mask_row + std::ptrdiff_t(v) * 8);
    }
    return codes;
}

}  // namespace
}  // namespace mixed_kv::kernels::avx512
