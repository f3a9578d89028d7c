#pragma once

#include "formats/block_layout.h"
#include "kernels/avx2/simd.h"
#include "kernels/contract.h"

// Reads code planes as bytes: 8 lanes of 32 bits, each with four codes. For keys a lane is a token and the
// four are channels; for values a lane is a channel and the four are tokens. Pictures in docs/data-layout.md.
namespace mixed_kv::kernels::avx2 {

// Two vectors of codes that share their plane bytes. Keys: tokens 32h + 8j.. and 32h + 16 + 8j..; values:
// tokens 8u.. and 8u + 4...
struct CodePair {
    __m256i a, b;
};

// Where the planes of one such pair begin.
struct PlanePointers {
    const std::byte *byte_a, *byte_b;      // 32 bytes each
    const std::byte* nibble;               // 32 bytes: a low, b high
    const std::byte* pair;                 // 32 bytes of four fields, of which the pair uses two
    const std::byte *single_a, *single_b;  // 4 bytes each
};

namespace {

// Bits [kFrom, kFrom + 2) of every byte, moved to bit kTo.
template <int kFrom, int kTo>
inline __m256i move_pair(__m256i x) noexcept {
    if constexpr (kFrom > kTo) {
        x = _mm256_srli_epi16(x, kFrom - kTo);
    } else if constexpr (kTo > kFrom) {
        x = _mm256_slli_epi16(x, kTo - kFrom);
    }
    return _mm256_and_si256(x, _mm256_set1_epi8(3 << kTo));
}

// Bit i of the word to byte i, as 0 or 1 << kTo.
template <int kTo>
inline __m256i spread_bits(const std::byte* word) noexcept {
    std::int32_t bits;
    std::memcpy(&bits, word, sizeof bits);
    const __m256i select = _mm256_set1_epi64x(std::int64_t(0x8040201008040201));
    const __m256i index = _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
    const __m256i bytes = _mm256_and_si256(_mm256_shuffle_epi8(_mm256_set1_epi32(bits), index), select);
    return _mm256_and_si256(_mm256_cmpeq_epi8(bytes, select), _mm256_set1_epi8(1 << kTo));
}

// kOdd: which half of the pair plane's fields (keys: h; values: u % 2).
template <int kBits, int kOdd>
inline CodePair load_codes(const PlanePointers& p) noexcept {
    constexpr formats::CodePlanes planes = formats::code_planes(kBits);
    CodePair codes{};
    if constexpr (planes.byte) {
        codes = {load_i(p.byte_a), load_i(p.byte_b)};
    }
    if constexpr (planes.nibble) {
        const __m256i low = _mm256_set1_epi8(15);
        const __m256i x = load_i(p.nibble);
        codes = {_mm256_and_si256(x, low), _mm256_and_si256(_mm256_srli_epi16(x, 4), low)};
    }
    if constexpr (planes.pair) {
        const __m256i x = load_i(p.pair);
        codes.a = _mm256_or_si256(codes.a, move_pair<4 * kOdd, planes.pair_shift>(x));
        codes.b = _mm256_or_si256(codes.b, move_pair<4 * kOdd + 2, planes.pair_shift>(x));
    }
    if constexpr (planes.single) {
        codes.a = _mm256_or_si256(codes.a, spread_bits<planes.single_shift>(p.single_a));
        codes.b = _mm256_or_si256(codes.b, spread_bits<planes.single_shift>(p.single_b));
    }
    return codes;
}

// Channel group g (of 4), half h, vector j of a half: tokens 32h + 8j.. and 32h + 16 + 8j...
inline PlanePointers key_planes(const std::byte* block, const formats::BlockLayout& l, std::ptrdiff_t g,
                                int h, int j) noexcept {
    const std::byte* byte = block + l.byte_plane + std::size_t(g) * 256 + h * 128 + j * 32;
    const std::byte* single = block + l.single_plane + std::size_t(g) * 32 + h * 16 + j * 4;
    return {byte,
            byte + 64,
            block + l.nibble_plane + std::size_t(g) * 128 + h * 64 + j * 32,
            block + l.pair_plane + std::size_t(g) * 64 + j * 32,
            single,
            single + 8};
}

// Tokens 8u.. and 8u + 4.., channels 8v...
inline PlanePointers value_planes(const std::byte* block, const formats::BlockLayout& l, int u,
                                  int v) noexcept {
    const std::size_t row = std::size_t(l.dim) * 4;       // plane bytes of four tokens, one code per byte
    const std::size_t mask_row = std::size_t(l.dim) / 2;  // mask bytes of four tokens
    const std::byte* byte = block + l.byte_plane + 2 * u * row + v * 32;
    const std::byte* single = block + l.single_plane + 2 * u * mask_row + v * 4;
    return {byte,
            byte + row,
            block + l.nibble_plane + u * row + v * 32,
            block + l.pair_plane + u / 2 * row + v * 32,
            single,
            single + mask_row};
}

// Codes as 16-bit words, what vpmaddwd multiplies: of the four codes of each lane those of the even bytes, 0
// and 2, and those of the odd ones.
struct Words {
    __m256i even, odd;
};

inline Words to_words(__m256i bytes) noexcept {
    return {_mm256_and_si256(bytes, _mm256_set1_epi16(0xff)), _mm256_srli_epi16(bytes, 8)};
}

// Bits [kFrom, kFrom + kWidth) of every byte, as words.
template <int kFrom, int kWidth>
inline Words field_words(__m256i x) noexcept {
    const __m256i mask = _mm256_set1_epi16((1 << kWidth) - 1);
    Words w;
    w.even = _mm256_and_si256(kFrom == 0 ? x : _mm256_srli_epi16(x, kFrom), mask);
    w.odd = _mm256_srli_epi16(x, 8 + kFrom);
    if constexpr (kFrom + kWidth < 8) w.odd = _mm256_and_si256(w.odd, mask);
    return w;
}

// Keys of 4 and 2 bits stay where they lie in the byte, which saves a shift: the sums of the pair's a and b
// (kB) come out multiplied by 2^key_shift, exactly, and are shifted back at the end of the page.
constexpr int key_shift(int bits, int half, int b) {
    return bits == 4 ? 4 * b : bits == 2 ? 4 * half + 2 * b : 0;
}

// Whether a's bytes are left whole, so that its sums contain b's as they are.
constexpr bool key_a_contains_b(int bits) { return bits == 4; }

// The most channel groups whose sums, multiplied by 2^key_shift, are below 2^31: 4 * 64 channels of codes up
// to 15 << 4 times 16-bit integers up to 32639.
constexpr int key_groups_at_once(int bits) { return bits == 4 || bits == 2 ? 64 : kMaxHeadDim / 4; }

struct WordsPair {
    Words a, b;
};

template <int kBits, int kHalf>
inline WordsPair key_words(const PlanePointers& p) noexcept {
    if constexpr (kBits == 4) {
        const __m256i high = _mm256_set1_epi16(0xf0);
        const Words whole = to_words(load_i(p.nibble));
        return {whole, {_mm256_and_si256(load_i(p.nibble), high), _mm256_and_si256(whole.odd, high)}};
    } else if constexpr (kBits == 2) {
        const __m256i x = load_i(p.pair), odd = _mm256_srli_epi16(x, 8);
        const __m256i a = _mm256_set1_epi16(3 << 4 * kHalf), b = _mm256_set1_epi16(12 << 4 * kHalf);
        return {{_mm256_and_si256(x, a), _mm256_and_si256(odd, a)},
                {_mm256_and_si256(x, b), _mm256_and_si256(odd, b)}};
    } else {
        const CodePair codes = load_codes<kBits, kHalf>(p);
        return {to_words(codes.a), to_words(codes.b)};
    }
}

// Tokens 4 (4 u + kQuad).. + 3, channels 8v...
template <int kBits, int kQuad>
inline Words value_words(const std::byte* block, const formats::BlockLayout& l, int u, int v) noexcept {
    constexpr formats::CodePlanes planes = formats::code_planes(kBits);
    constexpr int kB = kQuad % 2;
    const PlanePointers p = value_planes(block, l, 2 * u + kQuad / 2, v);
    if constexpr (kBits == 4) {
        return field_words<4 * kB, 4>(load_i(p.nibble));
    } else if constexpr (kBits == 2) {
        return field_words<2 * kQuad, 2>(load_i(p.pair));
    } else {
        __m256i codes{};
        if constexpr (planes.byte) {
            codes = load_i(kB ? p.byte_b : p.byte_a);
        }
        if constexpr (planes.nibble) {
            const __m256i x = load_i(p.nibble);
            codes = _mm256_and_si256(kB ? _mm256_srli_epi16(x, 4) : x, _mm256_set1_epi8(15));
        }
        if constexpr (planes.pair) {
            codes = _mm256_or_si256(codes, move_pair<2 * kQuad, planes.pair_shift>(load_i(p.pair)));
        }
        if constexpr (planes.single) {
            codes = _mm256_or_si256(codes, spread_bits<planes.single_shift>(kB ? p.single_b : p.single_a));
        }
        return to_words(codes);
    }
}

}  // namespace
}  // namespace mixed_kv::kernels::avx2
