#pragma once

#include <cstddef>
#include <cstdint>

// Where everything lies in one KV head's encoded page (docs/data-layout.md has the pictures). A uniform
// block:
//
//   [scales]        one per channel (key, padded to 16) or per token (value): binary16, or a byte if narrow
//   [offset fp16]   one per channel, padded to 16: zero point (key), mean less the codes' mean (value)
//   [codes]         planes of 8, 4, 2 and 1 bits that add up to the code width
//
// Every plane starts at a multiple of 64 bytes. A tiered block, a narrow key of 16, 32, ... channels, gives
// every slot of 16 channels a width of its own:
//
//   [order uint8]   the quad of channels (4g .. 4g + 3) stored at each place, head_dim / 4
//   [width uint8]   of each slot of four places, widest first, head_dim / 16
//   [tiers]         at multiples of 16 bytes: a uniform block for each run of slots of equal width
//
// Included by files compiled for different instruction sets: types are plain data and functions have internal
// linkage, so that no compiled copy is shared between them.
namespace mixed_kv::formats {

// How a block stores its scales: as binary16, or as a byte b that stands for the binary16 number of bits b <<
// 7 (5 bits of exponent, 3 behind the leading one).
enum class ScaleForm { half, byte };

// The planes of a code: `bits` = 8 is one whole byte, anything else the sum of a nibble, a pair and a single
// bit, low bits first.
struct CodePlanes {
    bool byte, nibble, pair, single;
    int pair_shift, single_shift;  // position of that plane's bits in the code
};

struct BlockLayout {
    ScaleForm scale_form;
    int n_scales, n_offsets;  // padding included
    int dim;                  // head_dim rounded up to what the code layout holds
    std::size_t offsets;      // this and the following in bytes; the scales are at 0
    std::size_t byte_plane, nibble_plane, pair_plane, single_plane;
    std::size_t bytes;  // of the whole block
};

// Slots of equal width in a tiered block: `n_channels` channels from place `first` on (in the stored order),
// laid out by block_layout_of_tier(width, n_channels) `offset` bytes from the block's start.
struct KeyTier {
    int width;
    int first, n_channels;
    std::size_t offset;
};

constexpr int kMaxTiers = 5;

struct KeyTiers {
    const std::uint8_t* order;  // [head_dim / 4]
    int n_tiers;
    KeyTier tier[kMaxTiers];  // widest first
    std::size_t bytes;        // of the block that are in use
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

// Narrow formats have byte scales and, for keys, widths by channel (docs/adr/0014-bits-by-channel.md).
constexpr bool is_narrow(int code_bits) { return code_bits <= 3; }
constexpr bool is_tiered(bool is_key, int code_bits, int head_dim) {
    return is_key && is_narrow(code_bits) && head_dim % 16 == 0;
}

constexpr BlockLayout uniform_layout(bool is_key, int bits, int head_dim, ScaleForm form,
                                     std::size_t alignment) {
    const auto align = [alignment](std::size_t n) { return (n + alignment - 1) / alignment * alignment; };
    const CodePlanes planes = code_planes(bits);
    BlockLayout l{};
    l.scale_form = form;
    l.n_offsets = round_up(head_dim, 16);
    l.n_scales = is_key ? l.n_offsets : kPageRows;
    l.dim = round_up(head_dim, is_key ? 4 : 16);
    l.offsets = std::size_t(l.n_scales) * (form == ScaleForm::byte ? 1 : 2);
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

// A whole block that is not tiered.
constexpr BlockLayout block_layout(bool is_key, int bits, int head_dim) {
    return uniform_layout(is_key, bits, head_dim, is_narrow(bits) ? ScaleForm::byte : ScaleForm::half, 64);
}

// A tier of a tiered key block. Width 0: zero points alone.
constexpr BlockLayout block_layout_of_tier(int width, int n_channels) {
    BlockLayout l = uniform_layout(true, width, n_channels, ScaleForm::byte, 16);
    if (width == 0) {
        l.n_scales = 0;
        l.offsets = 0;
        l.bytes = std::size_t(l.n_offsets) * 2;
        l.byte_plane = l.nibble_plane = l.pair_plane = l.single_plane = l.bytes;
    }
    return l;
}

// Widths that a slot of 16 channels may have, and how many bits all slots of a block share: 2.75 and 2 a
// channel.
constexpr int kTierWidths[kMaxTiers] = {0, 2, 3, 4, 6};
constexpr int width_budget(int code_bits, int head_dim) {
    return head_dim / 16 * (code_bits == 3 ? 11 : 4 * code_bits) / 4;
}

// Rows that are looked at to find out how close a channel's values lie (key_tiers.h): of n counted rows, the
// ones numbered i * n / 12.
constexpr int kSampledRows = 12;

// The order and the widths.
constexpr std::size_t tier_header_bytes(int head_dim) {
    return std::size_t(round_up(head_dim / 4 + head_dim / 16, 16));
}

// Bytes of a block; of a tiered one, all of which have the same size, if the budget is used up.
constexpr std::size_t block_bytes(bool is_key, int bits, int head_dim) {
    if (!is_tiered(is_key, bits, head_dim)) {
        return block_layout(is_key, bits, head_dim).bytes;
    }
    const std::size_t parameters = std::size_t(head_dim) * 3;  // a byte and a binary16 number per channel
    const std::size_t codes = std::size_t(width_budget(bits, head_dim)) * 16 * kPageRows / 8;
    return (tier_header_bytes(head_dim) + parameters + codes + 63) / 64 * 64;
}

// From a block whose widths do not increase; of any other, no more than kMaxTiers tiers.
inline KeyTiers read_key_tiers(const std::byte* block, int head_dim) {
    KeyTiers tiers{};
    tiers.order = reinterpret_cast<const std::uint8_t*>(block);
    const std::uint8_t* widths = tiers.order + head_dim / 4;
    const int n_slots = head_dim / 16;
    std::size_t at = tier_header_bytes(head_dim);
    for (int slot = 0; slot < n_slots && tiers.n_tiers < kMaxTiers;) {
        int end = slot + 1;
        while (end < n_slots && widths[end] == widths[slot]) {
            ++end;
        }
        const int width = widths[slot];
        tiers.tier[tiers.n_tiers++] = {width, slot * 16, (end - slot) * 16, at};
        at += block_layout_of_tier(width, (end - slot) * 16).bytes;
        slot = end;
    }
    tiers.bytes = at;
    return tiers;
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

// For tiered keys, `bits` and `length` or `head_dim` of the next two functions are the width and the channels
// of one tier: its 16-bit query, step and second pass are its own.

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

// The same for scales stored as a byte, 3 bits behind the leading one, subnormal numbers included. The result
// is infinite beyond 61440.
constexpr std::uint16_t byte_scale(std::uint16_t scale) {
    return static_cast<std::uint16_t>((scale + 127) & ~127);
}
constexpr std::uint8_t scale_to_byte(std::uint16_t scale) { return static_cast<std::uint8_t>(scale >> 7); }
constexpr std::uint16_t scale_from_byte(std::uint8_t byte) { return static_cast<std::uint16_t>(byte << 7); }

// A range that grows to the next scale may begin below binary16's numbers: its zero point does not.
constexpr float kLowestZero = -65504.0f;

// Wide codes lose more by clipping than they win by finer steps. So do keys: the ends of a channel's range
// are what attention looks for (docs/adr/0010-keys-are-hardly-clipped.md). Keys of all widths inside a narrow
// block try the same three factors. A byte scale may reach an eighth beyond the range, and then the outermost
// of many codes are not used: the factors above 1 find the scale of such a channel again after it was
// decoded.
constexpr ClipFactors clip_factors(bool is_key, int bits, ScaleForm form) {
    if (is_key && form == ScaleForm::half) {
        return {1, {1.0f}};
    }
    if (is_key) {
        return bits >= 4 ? ClipFactors{6, {1.0f, 0.97f, 0.94f, 1.04f, 1.08f, 1.125f}}
                         : ClipFactors{3, {1.0f, 0.97f, 0.94f}};
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
