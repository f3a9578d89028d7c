#include "formats/codec.h"

#include <cstring>
#include <limits>

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

// Scale and zero point for the n values x[i * stride] (those with bit i of `counted`; all for nullptr): the
// candidate range with the smallest squared error, summed in index order. symmetric: ranges about 0, shift is
// middle_code(bits); else the range of the values, shift is 0.
Affine choose_affine(int bits, bool symmetric, const float* x, int n, std::ptrdiff_t stride,
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
    const float per_code = 2.0f / max_code;
    const ClipFactors clips = clip_factors(!symmetric, bits);

    Affine best;
    float best_error = 0.0f;
    for (int k = 0; k < clips.count; ++k) {
        const float reach = half * clips.factor[k];
        const fp16_t rounded = fp32_to_fp16(reach * per_code);
        const Affine candidate =
            symmetric ? Affine{coarse_scale(rounded), 0} : Affine{rounded, fp32_to_fp16(middle - reach)};
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

void put_param(std::byte* block, std::size_t offset, int index, fp16_t value) noexcept {
    std::memcpy(block + offset + std::size_t(index) * sizeof value, &value, sizeof value);
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

bool encode_key(int code_bits, const kernels::EncodeArgs& args) noexcept {
    if (!counted_rows_are_finite(args)) {
        return false;
    }
    const BlockLayout l = block_layout(true, code_bits, args.head_dim);
    const CodePlanes planes = code_planes(code_bits);
    const float max_code = static_cast<float>((1 << code_bits) - 1);
    std::memset(args.block, 0, l.bytes);
    for (int c = 0; c < args.head_dim; ++c) {
        float column[kPageRows];
        for (int t = 0; t < kPageRows; ++t) {
            column[t] = fp16_to_fp32(args.rows[t * args.row_stride + c]);
        }
        // Differences of finite binary16 numbers: scale and zero point always fit.
        const Affine a = choose_affine(code_bits, false, column, kPageRows, 1, &args.counted);
        put_param(args.block, 0, c, a.scale);
        put_param(args.block, l.offsets, c, a.zero);
        for (int t = 0; t < kPageRows; ++t) {
            put_key_code(args.block, l, planes, t, c, encode_one(column[t], a, 0.0f, max_code));
        }
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
        affine[t] = choose_affine(code_bits, true, row, args.head_dim, 1, nullptr);
        if (!fp16_is_finite(affine[t].scale)) {
            return false;
        }
    }
    std::memset(args.block, 0, l.bytes);
    float residuals[kernels::kMaxHeadDim * 8] = {};
    for (int t = 0; t < kPageRows; ++t) {
        load_value_row(args, t, means, row);
        put_param(args.block, 0, t, affine[t].scale);
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
        put_param(args.block, l.offsets, c, offsets[c]);
    }
    return true;
}

BlockReader::BlockReader(int code_bits, KvRole role, int head_dim, const std::byte* block) noexcept
    : is_key_(role == KvRole::key),
      planes_(code_planes(code_bits)),
      shift_(is_key_ ? 0.0f : middle_code(code_bits)),
      layout_(block_layout(is_key_, code_bits, head_dim)),
      block_(block) {}

int BlockReader::code(int t, int c) const noexcept {
    const auto bits = [this](std::size_t plane, PlanePosition at, int mask) {
        return static_cast<int>(block_[plane + at.byte]) >> at.shift & mask;
    };
    const int dim = layout_.dim;
    int code = 0;
    if (planes_.byte) {
        code = bits(layout_.byte_plane, is_key_ ? key_byte(t, c) : value_byte(dim, t, c), 255);
    }
    if (planes_.nibble) {
        code = bits(layout_.nibble_plane, is_key_ ? key_nibble(t, c) : value_nibble(dim, t, c), 15);
    }
    if (planes_.pair) {
        code |= bits(layout_.pair_plane, is_key_ ? key_pair(t, c) : value_pair(dim, t, c), 3)
                << planes_.pair_shift;
    }
    if (planes_.single) {
        code |= bits(layout_.single_plane, is_key_ ? key_single(t, c) : value_single(dim, t, c), 1)
                << planes_.single_shift;
    }
    return code;
}

float BlockReader::param(std::size_t offset, int index) const noexcept {
    fp16_t bits;
    std::memcpy(&bits, block_ + offset + std::size_t(index) * sizeof bits, sizeof bits);
    return fp16_to_fp32(bits);
}

float BlockReader::scale(int t, int c) const noexcept { return param(0, is_key_ ? c : t); }

float BlockReader::offset(int, int c) const noexcept { return param(layout_.offsets, c); }

}  // namespace mixed_kv::formats
