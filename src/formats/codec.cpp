#include "formats/codec.h"

#include <cmath>
#include <cstring>
#include <limits>

#include "formats/key_tiers.h"
#include "mixed_kv/fp16.h"

namespace mixed_kv::formats {
namespace {

// A code's value is scale * (code - shift) + zero. Keys: shift 0; values: zero 0.
struct Affine {
    fp16_t scale = 0, zero = 0;
};

// Adding and subtracting 1.5 * 2^23 rounds a float of small magnitude to the nearest integer, ties to even.
constexpr float kRoundMagic = 12582912.0f;

// A position on the scale of codes, rounded and clamped; NaN becomes 0. The comparisons have the operand
// order of the SSE min and max instructions.
float quantize(float t, float max_code) noexcept {
    t = t > 0.0f ? t : 0.0f;
    t = t < max_code ? t : max_code;
    return (t + kRoundMagic) - kRoundMagic;
}

float inverse(float scale) noexcept { return scale > 0.0f ? 1.0f / scale : 0.0f; }

// The scale and zero point, as stored, of a range of 2 * reach about `middle`. Keys with byte scales: the
// range grows with the rounded scale, and its middle stays where it is, within binary16.
Affine candidate_of(bool symmetric, ScaleForm form, float middle, float reach, float max_code) noexcept {
    const fp16_t scale = fp32_to_fp16(reach * (2.0f / max_code));
    if (symmetric) {
        return {form == ScaleForm::byte ? byte_scale(scale) : coarse_scale(scale), 0};
    }
    if (form == ScaleForm::half) {
        return {scale, fp32_to_fp16(middle - reach)};
    }
    const fp16_t rounded = byte_scale(scale);
    const float zero = middle - fp16_to_fp32(rounded) * (max_code * 0.5f);
    return {rounded, fp32_to_fp16(zero > kLowestZero ? zero : kLowestZero)};
}

// Scale and zero point for the n values x[i * stride] (those with bit i of `counted`; all for nullptr): the
// candidate range with the smallest squared error, summed in index order. symmetric: ranges about 0, shift is
// middle_code(bits); else the range of the values, shift is 0.
Affine choose_affine(int bits, bool symmetric, ScaleForm form, const float* x, int n, std::ptrdiff_t stride,
                     const std::uint64_t* counted) noexcept {
    const auto skips = [counted](int i) { return counted != nullptr && (*counted >> i & 1) == 0; };
    float lo = std::numeric_limits<float>::infinity();
    float hi = -lo;
    for (int i = 0; i < n; ++i) {
        if (skips(i)) {
            continue;
        }
        const float v = x[i * stride];
        lo = v < lo ? v : lo;
        hi = v > hi ? v : hi;
    }
    if (!(lo <= hi)) {
        return {};  // nothing counted
    }
    if (symmetric) {
        hi = -lo > hi ? -lo : hi;
        lo = -hi;
    }
    const float shift = symmetric ? middle_code(bits) : 0.0f;
    const float max_code = static_cast<float>((1 << bits) - 1);
    const float middle = lo * 0.5f + hi * 0.5f;
    const float half = hi * 0.5f - lo * 0.5f;
    const ClipFactors clips = clip_factors(!symmetric, bits, form);

    Affine best;
    float best_error = 0.0f;
    for (int k = 0; k < clips.count; ++k) {
        const Affine candidate = candidate_of(symmetric, form, middle, half * clips.factor[k], max_code);
        const float scale = fp16_to_fp32(candidate.scale);
        const float zero = fp16_to_fp32(candidate.zero);
        const float inv = inverse(scale);
        float error = 0.0f;
        for (int i = 0; i < n && clips.count > 1; ++i) {
            if (skips(i)) {
                continue;
            }
            const float t = (x[i * stride] - zero) * inv + shift;
            const float e = t - quantize(t, max_code);
            error += e * e;
        }
        // A scale that rounded to zero says nothing about the error: never preferred to an earlier candidate.
        error = scale > 0.0f ? error * (scale * scale) : std::numeric_limits<float>::infinity();
        if (k == 0 || error < best_error) {
            best = candidate;
            best_error = error;
        }
    }
    return best;
}

bool counted_rows_are_finite(const kernels::EncodeArgs& args) noexcept {
    for (int t = 0; t < kPageRows; ++t) {
        if ((args.counted >> t & 1) == 0) {
            continue;
        }
        const fp16_t* row = args.rows + t * args.row_stride;
        for (int c = 0; c < args.head_dim; ++c) {
            if (!fp16_is_finite(row[c])) {
                return false;
            }
        }
    }
    return true;
}

void put_bits(std::byte* plane, PlanePosition at, int bits) noexcept {
    plane[at.byte] |= static_cast<std::byte>(bits << at.shift);
}

void put_key_code(std::byte* block, const BlockLayout& l, CodePlanes planes, int t, int c,
                  int code) noexcept {
    if (planes.byte) {
        put_bits(block + l.byte_plane, key_byte(t, c), code);
    }
    if (planes.nibble) {
        put_bits(block + l.nibble_plane, key_nibble(t, c), code & 15);
    }
    if (planes.pair) {
        put_bits(block + l.pair_plane, key_pair(t, c), code >> planes.pair_shift & 3);
    }
    if (planes.single) {
        put_bits(block + l.single_plane, key_single(t, c), code >> planes.single_shift & 1);
    }
}

void put_value_code(std::byte* block, const BlockLayout& l, CodePlanes planes, int t, int c,
                    int code) noexcept {
    if (planes.byte) {
        put_bits(block + l.byte_plane, value_byte(l.dim, t, c), code);
    }
    if (planes.nibble) {
        put_bits(block + l.nibble_plane, value_nibble(l.dim, t, c), code & 15);
    }
    if (planes.pair) {
        put_bits(block + l.pair_plane, value_pair(l.dim, t, c), code >> planes.pair_shift & 3);
    }
    if (planes.single) {
        put_bits(block + l.single_plane, value_single(l.dim, t, c), code >> planes.single_shift & 1);
    }
}

void put_offset(std::byte* block, const BlockLayout& l, int index, fp16_t value) noexcept {
    std::memcpy(block + l.offsets + std::size_t(index) * sizeof value, &value, sizeof value);
}

void put_scale(std::byte* block, const BlockLayout& l, int index, fp16_t value) noexcept {
    if (l.scale_form == ScaleForm::byte) {
        block[index] = std::byte(scale_to_byte(value));
    } else {
        std::memcpy(block + std::size_t(index) * sizeof value, &value, sizeof value);
    }
}

}  // namespace

// In place over groups of `size`: butterflies at distance 1, 2, 4, ..., then one multiplication. The order is
// part of the format's definition.
void rotate(float* x, int n, int size) noexcept {
    const float norm = hadamard_norm(size);
    for (float* group = x; group < x + n; group += size) {
        for (int h = 1; h < size; h *= 2) {
            for (int i = 0; i < size; i += 2 * h) {
                for (int j = i; j < i + h; ++j) {
                    const float a = group[j];
                    const float b = group[j + h];
                    group[j] = a + b;
                    group[j + h] = a - b;
                }
            }
        }
        for (int i = 0; i < size && size > 1; ++i) {
            group[i] *= norm;
        }
    }
}

bool rotated_means(float* sums, int head_dim, int n_rows, fp16_t* means) noexcept {
    const float share = 1.0f / static_cast<float>(n_rows > 0 ? n_rows : 1);
    for (int c = 0; c < head_dim; ++c) {
        sums[c] *= share;
    }
    rotate(sums, head_dim, hadamard_length(head_dim));
    bool finite = true;
    for (int c = 0; c < head_dim; ++c) {
        means[c] = fp32_to_fp16(sums[c]);
        finite = finite && fp16_is_finite(means[c]);
    }
    return finite;
}

void value_offsets(const float* rotated, const float* residuals, int head_dim, int n_rows,
                   const fp16_t* means, fp16_t* offsets) noexcept {
    const float share = 1.0f / static_cast<float>(n_rows > 0 ? n_rows : 1);
    for (int c = 0; c < head_dim; ++c) {
        const float* r = residuals + std::ptrdiff_t(c) * 8;
        const float even = (r[0] + r[4]) + (r[2] + r[6]);
        const float odd = (r[1] + r[5]) + (r[3] + r[7]);
        const fp16_t offset = fp32_to_fp16(rotated[c] - (even + odd) * share);
        offsets[c] = fp16_is_finite(offset) ? offset : means[c];
    }
}

namespace {

// The means of the counted rows, rotated, as floats and as stored. False when binary16 cannot hold one.
bool means_of_rows(const kernels::EncodeArgs& args, float* rotated, fp16_t* means, int& n_rows) noexcept {
    n_rows = 0;
    for (int c = 0; c < args.head_dim; ++c) {
        rotated[c] = 0.0f;
    }
    for (int t = 0; t < kPageRows; ++t) {
        if ((args.counted >> t & 1) == 0) {
            continue;
        }
        ++n_rows;
        for (int c = 0; c < args.head_dim; ++c) {
            rotated[c] += fp16_to_fp32(args.rows[t * args.row_stride + c]);
        }
    }
    return rotated_means(rotated, args.head_dim, n_rows, means);
}

// A row less the means, rotated; one that is not counted is at the means.
void load_value_row(const kernels::EncodeArgs& args, int token, const fp16_t* means, float* row) noexcept {
    if ((args.counted >> token & 1) == 0) {
        for (int c = 0; c < args.head_dim; ++c) {
            row[c] = 0.0f;
        }
        return;
    }
    const fp16_t* in = args.rows + token * args.row_stride;
    for (int c = 0; c < args.head_dim; ++c) {
        row[c] = fp16_to_fp32(in[c]);
    }
    rotate(row, args.head_dim, hadamard_length(args.head_dim));
    for (int c = 0; c < args.head_dim; ++c) {
        row[c] -= fp16_to_fp32(means[c]);
    }
}

int encode_one(float x, Affine a, float shift, float max_code) noexcept {
    const float scale = fp16_to_fp32(a.scale);
    return static_cast<int>(quantize((x - fp16_to_fp32(a.zero)) * inverse(scale) + shift, max_code));
}

}  // namespace

namespace {

void load_column(const kernels::EncodeArgs& args, int channel, float* column) noexcept {
    for (int t = 0; t < kPageRows; ++t) {
        column[t] = fp16_to_fp32(args.rows[t * args.row_stride + channel]);
    }
}

// Scales, zero points and codes of channels laid out by l, to be zeroed before: place i holds channel i, or,
// with an order of quads, channel 4 order[i / 4] + i % 4.
void encode_channels(int bits, const kernels::EncodeArgs& args, const BlockLayout& l,
                     const std::uint8_t* order, int n_channels, std::byte* block) noexcept {
    const CodePlanes planes = code_planes(bits);
    const float max_code = static_cast<float>((1 << bits) - 1);
    for (int i = 0; i < n_channels; ++i) {
        float column[kPageRows];
        load_column(args, order == nullptr ? i : order[i / 4] * 4 + i % 4, column);
        // Differences of finite binary16 numbers: scale and zero point always fit.
        const Affine a = choose_affine(bits, false, l.scale_form, column, kPageRows, 1, &args.counted);
        put_scale(block, l, i, a.scale);
        put_offset(block, l, i, a.zero);
        for (int t = 0; t < kPageRows; ++t) {
            put_key_code(block, l, planes, t, i, encode_one(column[t], a, 0.0f, max_code));
        }
    }
}

// Range and mean of the counted rows, 0 if there are none; gap: see KeySpreads.
struct Spread {
    float range, mean, gap;
};

Spread spread_of(const float* column, std::uint64_t counted) noexcept {
    float values[kPageRows];
    float lo = std::numeric_limits<float>::infinity();
    float hi = -lo, sum = 0.0f;
    int n = 0;
    for (int t = 0; t < kPageRows; ++t) {
        if ((counted >> t & 1) == 0) {
            continue;
        }
        lo = column[t] < lo ? column[t] : lo;
        hi = column[t] > hi ? column[t] : hi;
        sum += column[t];
        values[n++] = column[t];
    }
    if (n == 0) {
        return {};
    }
    Spread spread{hi - lo, sum * (1.0f / static_cast<float>(n)), 0.0f};
    if (n >= kSampledRows) {
        spread.gap = spread.range;
        for (int i = 0; i < kSampledRows; ++i) {
            for (int j = 0; j < i; ++j) {
                const float gap = std::fabs(values[i * n / kSampledRows] - values[j * n / kSampledRows]);
                spread.gap = gap > 0.0f && gap < spread.gap ? gap : spread.gap;
            }
        }
    }
    return spread;
}

void encode_tiers(int code_bits, const kernels::EncodeArgs& args) noexcept {
    float ranges[kernels::kMaxHeadDim], means[kernels::kMaxHeadDim], gaps[kernels::kMaxHeadDim];
    for (int c = 0; c < args.head_dim; ++c) {
        float column[kPageRows];
        load_column(args, c, column);
        const Spread spread = spread_of(column, args.counted);
        ranges[c] = spread.range;
        means[c] = spread.mean;
        gaps[c] = spread.gap;
    }
    choose_key_tiers(code_bits, {ranges, gaps}, args.head_dim, args.block);
    const KeyTiers tiers = read_key_tiers(args.block, args.head_dim);
    for (int i = 0; i < tiers.n_tiers; ++i) {
        const KeyTier& tier = tiers.tier[i];
        const std::uint8_t* order = tiers.order + tier.first / 4;
        const BlockLayout l = block_layout_of_tier(tier.width, tier.n_channels);
        std::byte* data = args.block + tier.offset;
        if (tier.width > 0) {
            encode_channels(tier.width, args, l, order, tier.n_channels, data);
            continue;
        }
        for (int c = 0; c < tier.n_channels; ++c) {
            put_offset(data, l, c, fp32_to_fp16(means[order[c / 4] * 4 + c % 4]));
        }
    }
}

}  // namespace

bool encode_key(int code_bits, const kernels::EncodeArgs& args) noexcept {
    if (!counted_rows_are_finite(args)) {
        return false;
    }
    std::memset(args.block, 0, block_bytes(true, code_bits, args.head_dim));
    if (is_tiered(true, code_bits, args.head_dim)) {
        encode_tiers(code_bits, args);
    } else {
        encode_channels(code_bits, args, block_layout(true, code_bits, args.head_dim), nullptr, args.head_dim,
                        args.block);
    }
    return true;
}

bool encode_value(int code_bits, const kernels::EncodeArgs& args) noexcept {
    if (!counted_rows_are_finite(args)) {
        return false;
    }
    const BlockLayout l = block_layout(false, code_bits, args.head_dim);
    const CodePlanes planes = code_planes(code_bits);
    const float max_code = static_cast<float>((1 << code_bits) - 1);
    const float shift = middle_code(code_bits);
    float row[kernels::kMaxHeadDim];
    float rotated[kernels::kMaxHeadDim];
    fp16_t means[kernels::kMaxHeadDim];
    Affine affine[kPageRows];
    int n_rows = 0;
    if (!means_of_rows(args, rotated, means, n_rows)) {
        return false;
    }
    for (int t = 0; t < kPageRows; ++t) {
        load_value_row(args, t, means, row);
        affine[t] = choose_affine(code_bits, true, l.scale_form, row, args.head_dim, 1, nullptr);
        if (!fp16_is_finite(affine[t].scale)) {
            return false;
        }
    }
    std::memset(args.block, 0, l.bytes);
    float residuals[kernels::kMaxHeadDim * 8] = {};
    for (int t = 0; t < kPageRows; ++t) {
        load_value_row(args, t, means, row);
        put_scale(args.block, l, t, affine[t].scale);
        const float scale = fp16_to_fp32(affine[t].scale);
        for (int c = 0; c < args.head_dim; ++c) {
            const int code = encode_one(row[c], affine[t], shift, max_code);
            put_value_code(args.block, l, planes, t, c, code);
            residuals[c * 8 + t % 8] += (static_cast<float>(code) - shift) * scale;
        }
    }
    fp16_t offsets[kernels::kMaxHeadDim];
    value_offsets(rotated, residuals, args.head_dim, n_rows, means, offsets);
    for (int c = 0; c < args.head_dim; ++c) {
        put_offset(args.block, l, c, offsets[c]);
    }
    return true;
}

BlockReader::BlockReader(int code_bits, KvRole role, int head_dim, const std::byte* block) noexcept
    : is_key_(role == KvRole::key), shift_(is_key_ ? 0.0f : middle_code(code_bits)) {
    if (!is_tiered(is_key_, code_bits, head_dim)) {
        parts_[0] = {block, code_bits, code_planes(code_bits), block_layout(is_key_, code_bits, head_dim),
                     0,     head_dim};
        return;
    }
    const KeyTiers tiers = read_key_tiers(block, head_dim);
    n_parts_ = tiers.n_tiers;
    for (int i = 0; i < n_parts_; ++i) {
        const KeyTier& tier = tiers.tier[i];
        parts_[i] = {block + tier.offset,
                     tier.width,
                     code_planes(tier.width),
                     block_layout_of_tier(tier.width, tier.n_channels),
                     tier.first,
                     tier.first + tier.n_channels};
    }
    ordered_ = true;
    for (int g = 0; g < head_dim / 4; ++g) {
        place_of_quad_[tiers.order[g]] = static_cast<std::uint8_t>(g);
    }
}

int BlockReader::place(int c) const noexcept { return ordered_ ? place_of_quad_[c / 4] * 4 + c % 4 : c; }

const BlockReader::Part& BlockReader::part_of(int place) const noexcept {
    const Part* part = parts_;
    while (part < parts_ + n_parts_ - 1 && place >= part->end) {
        ++part;
    }
    return *part;
}

int BlockReader::width(int channel) const noexcept { return part_of(place(channel)).width; }

int BlockReader::code(int t, int channel) const noexcept {
    const int at = place(channel);
    const Part& part = part_of(at);
    const BlockLayout& l = part.layout;
    const int c = at - part.first;
    const auto bits = [&part](std::size_t plane, PlanePosition position, int mask) {
        return static_cast<int>(part.data[plane + position.byte]) >> position.shift & mask;
    };
    int code = 0;
    if (part.planes.byte) {
        code = bits(l.byte_plane, is_key_ ? key_byte(t, c) : value_byte(l.dim, t, c), 255);
    }
    if (part.planes.nibble) {
        code = bits(l.nibble_plane, is_key_ ? key_nibble(t, c) : value_nibble(l.dim, t, c), 15);
    }
    if (part.planes.pair) {
        code |= bits(l.pair_plane, is_key_ ? key_pair(t, c) : value_pair(l.dim, t, c), 3)
                << part.planes.pair_shift;
    }
    if (part.planes.single) {
        code |= bits(l.single_plane, is_key_ ? key_single(t, c) : value_single(l.dim, t, c), 1)
                << part.planes.single_shift;
    }
    return code;
}

float BlockReader::scale(int t, int channel) const noexcept {
    const int at = place(channel);
    const Part& part = part_of(at);
    const std::size_t index = is_key_ ? std::size_t(at - part.first) : std::size_t(t);
    if (part.layout.n_scales == 0) {
        return 0.0f;
    }
    if (part.layout.scale_form == ScaleForm::byte) {
        return fp16_to_fp32(scale_from_byte(std::to_integer<std::uint8_t>(part.data[index])));
    }
    fp16_t bits;
    std::memcpy(&bits, part.data + index * sizeof bits, sizeof bits);
    return fp16_to_fp32(bits);
}

float BlockReader::offset(int, int channel) const noexcept {
    const int at = place(channel);
    const Part& part = part_of(at);
    fp16_t bits;
    std::memcpy(&bits, part.data + part.layout.offsets + std::size_t(at - part.first) * sizeof bits,
                sizeof bits);
    return fp16_to_fp32(bits);
}

}  // namespace mixed_kv::formats
