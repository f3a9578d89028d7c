#pragma once

#include <cstddef>
#include <cstdint>

// Where everything lies in one KV head's encoded page (docs/data-layout.md has the pictures):
//
//   [scale fp16]    one per channel (key, padded to 16) or per token (value)
//   [offset fp16]   one per channel, padded to 16: zero point (key), mean less the codes' mean (value)
//   [codes]         planes of 8, 4, 2 and 1 bits that add up to the code width
//
// Every section starts at a multiple of 64 bytes. Included by files compiled for different instruction sets:
// types are plain data and functions have internal linkage, so that no compiled copy is shared between them.
namespace mixed_kv::formats {

// The planes of a code: `bits` = 8 is one whole byte, anything else the sum of a nibble, a pair and a single
// bit, low bits first.
struct CodePlanes {
    bool byte, nibble, pair, single;
    int pair_shift, single_shift;  // position of that plane's bits in the code
};

struct BlockLayout {
    int n_scales, n_offsets;  // padding included
    int dim;                  // head_dim rounded up to what the code layout holds
    std::size_t offsets;      // this and the following in bytes; the scales are at 0
    std::size_t byte_plane, nibble_plane, pair_plane, single_plane;
    std::size_t bytes;  // of the whole block
};

// Where one code's bits lie in a plane.
struct PlanePosition {
    std::size_t byte;
    int shift;
};

// Fractions of the full range [min, max] that an encoder tries, first one preferred.
struct ClipFactors {
    int count;
    float factor[6];
};

namespace {

constexpr int kPageRows = 64;

constexpr int round_up(int n, int multiple) { return (n + multiple - 1) / multiple * multiple; }

constexpr CodePlanes code_planes(int bits) {
    return {bits == 8, (bits & 4) != 0, (bits & 2) != 0, (bits & 1) != 0, bits & 4, bits & 6};
}

constexpr BlockLayout block_layout(bool is_key, int bits, int head_dim) {
    constexpr auto align = [](std::size_t n) { return (n + 63) / 64 * 64; };
    const CodePlanes planes = code_planes(bits);
    BlockLayout l{};
    l.n_offsets = round_up(head_dim, 16);
    l.n_scales = is_key ? l.n_offsets : kPageRows;
    l.dim = round_up(head_dim, is_key ? 4 : 16);
    l.offsets = std::size_t(l.n_scales) * 2;
    const std::size_t values = std::size_t(l.dim) * kPageRows;
    std::size_t at = align(l.offsets + std::size_t(l.n_offsets) * 2);
    l.byte_plane = at;
    at += planes.byte ? align(values) : 0;
    l.nibble_plane = at;
    at += planes.nibble ? align(values / 2) : 0;
    l.pair_plane = at;
    at += planes.pair ? align(values / 4) : 0;
    l.single_plane = at;
    at += planes.single ? align(values / 8) : 0;
    l.bytes = at;
    return l;
}

// Keys: [dim/4][64 tokens][4 channels] in every plane, except that
//   nibble  [dim/4][2 halves][16][4]: byte j of a half h holds tokens 32h + j/4 (low) and 32h + 16 + j/4
//   (high) pair    [dim/4][16][4]: field f of byte j holds token 16f + j/4 single  [dim/4][4]: a 64-bit mask
//   of tokens 16u.., bit i <-> token 16u + i/4
// in each case of channel j % 4 (i % 4) of the group.
constexpr PlanePosition key_byte(int token, int channel) {
    return {std::size_t(channel / 4) * 256 + token * 4 + channel % 4, 0};
}
constexpr PlanePosition key_nibble(int token, int channel) {
    return {std::size_t(channel / 4) * 128 + token / 32 * 64 + token % 16 * 4 + channel % 4,
            token / 16 % 2 * 4};
}
constexpr PlanePosition key_pair(int token, int channel) {
    return {std::size_t(channel / 4) * 64 + token % 16 * 4 + channel % 4, token / 16 * 2};
}
constexpr PlanePosition key_single(int token, int channel) {
    const int bit = token % 16 * 4 + channel % 4;
    return {(std::size_t(channel / 4) * 4 + token / 16) * 8 + bit / 8, bit % 8};
}

// Values: [16][dim][4 tokens], except that
//   nibble  [8][dim][4]: byte (u, c, i) holds tokens 8u + i (low) and 8u + 4 + i (high)
//   pair    [4][dim][4]: field f of byte (u, c, i) holds token 16u + 4f + i
//   single  [16][dim/16]: a 64-bit mask of tokens 4u.., bit 4(c % 16) + i <-> channel c, token 4u + i
constexpr PlanePosition value_byte(int dim, int token, int channel) {
    return {std::size_t(token / 4) * dim * 4 + channel * 4 + token % 4, 0};
}
constexpr PlanePosition value_nibble(int dim, int token, int channel) {
    return {std::size_t(token / 8) * dim * 4 + channel * 4 + token % 4, token / 4 % 2 * 4};
}
constexpr PlanePosition value_pair(int dim, int token, int channel) {
    return {std::size_t(token / 16) * dim * 4 + channel * 4 + token % 4, token / 4 % 4 * 2};
}
constexpr PlanePosition value_single(int dim, int token, int channel) {
    const int bit = channel % 16 * 4 + token % 4;
    return {(std::size_t(token / 4) * (dim / 16) + channel / 16) * 8 + bit / 8, bit % 8};
}

// Largest magnitude of a query (or probability) rounded to an integer for the decode kernels. 127 * 256 + 127
// splits into two balanced signed bytes; the other bound keeps sum_c |q16[c]| * 2^(bits-1) below 2^31.
constexpr int q16_limit(int bits, int length) {
    const std::int64_t no_overflow =
        ((std::int64_t(1) << 31) - 1) / ((std::int64_t(1) << (bits - 1)) * length);
    return no_overflow < 32639 ? int(no_overflow) : 32639;
}

// Rounding q * scale to units of `step` puts an error of about step / sqrt(12) times a code's deviation (0.2
// of the codes' range) and the square root of their number into a score. Above 8e-5 the residual is worth a
// second pass: an error of e in a score moves the weights by e, and the tolerance of verified attention is
// 1e-4 of the largest value.
inline float score_noise(int bits, int head_dim) {
    return 0.2f * static_cast<float>(1 << bits) * __builtin_sqrtf(static_cast<float>(head_dim) / 12.0f);
}
constexpr float kScoreNoiseAllowed = 8e-5f;
// Rounding p * scale matters where a page's largest weight is this share of the row's whole weight; below,
// the error is under 1e-5 of the largest value.
constexpr float kMassShareAllowed = 0.2f;

// The decode kernels' codes are centred: code - code_centre, so that rounding q acts on small numbers.
constexpr int code_centre(int bits) { return 1 << (bits - 1); }
// A value's code that stands for its channel's mean, between two codes: value codes are symmetric about it.
constexpr float middle_code(int bits) { return static_cast<float>((1 << bits) - 1) * 0.5f; }
// What is left of it when value codes are centred.
constexpr float kCentreAboveMiddle = 0.5f;

// A value scale, binary16 of at least 0, rounded up to 4 bits behind the leading one. On so coarse a grid a
// row that was decoded finds its own scale again among the candidates, where an exact one would grow each
// time by what the mean moved.
constexpr std::uint16_t coarse_scale(std::uint16_t scale) {
    return scale >= 0x0400 ? static_cast<std::uint16_t>((scale + 63) & ~63) : scale;
}

// Wide codes lose more by clipping than they win by finer steps. So do keys: the ends of a channel's range
// are what attention looks for (docs/adr/0010-keys-are-hardly-clipped.md).
constexpr ClipFactors clip_factors(bool is_key, int bits) {
    if (is_key) {
        return bits >= 4 ? ClipFactors{1, {1.0f}} : ClipFactors{3, {1.0f, 0.97f, 0.94f}};
    }
    switch (bits) {
        case 2:
            return {6, {1.0f, 0.92f, 0.84f, 0.76f, 0.68f, 0.6f}};
        case 3:
            return {6, {1.0f, 0.95f, 0.9f, 0.85f, 0.8f, 0.74f}};
        case 4:
            return {6, {1.0f, 0.97f, 0.94f, 0.91f, 0.88f, 0.84f}};
        case 5:
            return {6, {1.0f, 0.985f, 0.97f, 0.95f, 0.93f, 0.9f}};
        case 6:
            return {3, {1.0f, 0.985f, 0.97f}};
        default:
            return {1, {1.0f}};
    }
}

// 1 / sqrt(size) for a power of two.
constexpr float hadamard_norm(int size) {
    float norm = 1.0f;
    for (; size >= 4; size /= 4) norm *= 0.5f;
    return size == 2 ? norm * 0.70710678118654752440f : norm;
}

constexpr int hadamard_length(int head_dim) {
    const int power = head_dim & -head_dim;
    return power >= 32 ? power : 1;
}

}  // namespace
}  // namespace mixed_kv::formats
