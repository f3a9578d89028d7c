// Decode attention over cold pages, and their codecs.
//
// Integer scheme (all instruction sets agree on every integer): with k = scale[c] * code + zero[c],
//   sum_c q[c] * k[t][c] = sum_c q[c] * scale[c] * (code - centre)  +  sum_c q[c] * (zero[c] + centre *
//   scale[c])
// The second sum is one constant per row. In the first, q * scale is rounded to integers |q16| <= limit with
// one float step per row and page; the sum of q16 * (code - centre) is then exact, and below 2^31 by choice
// of the limit. Values alike, with p * scale[t] over tokens.

#include <cstring>

#include "formats/codec.h"
#include "formats/format_list.h"
#include "kernels/scalar/scalar.h"
#include "kernels/tiered_keys.h"
#include "mixed_kv/fp16.h"

namespace mixed_kv::kernels::scalar {
namespace {

using formats::BlockLayout;
using formats::CodePlanes;

constexpr float kRoundMagic = 12582912.0f;  // see src/formats/codec.cpp

float load_param(const std::byte* at, int index) noexcept {
    std::uint16_t bits;
    std::memcpy(&bits, at + std::size_t(index) * sizeof bits, sizeof bits);
    return mixed_kv::fp16_to_fp32(bits);
}

float load_scale(const std::byte* block, const BlockLayout& l, int index) noexcept {
    return l.scale_form == formats::ScaleForm::byte
               ? mixed_kv::fp16_to_fp32(formats::scale_from_byte(std::uint8_t(block[index])))
               : load_param(block, index);
}

int bits_at(const std::byte* plane, formats::PlanePosition at, int mask) noexcept {
    return static_cast<int>(plane[at.byte]) >> at.shift & mask;
}

// Codes of channel c for all tokens.
template <int kBits>
void key_codes(const std::byte* block, const BlockLayout& l, int c, int* out) noexcept {
    constexpr CodePlanes planes = formats::code_planes(kBits);
    for (int t = 0; t < kPage; ++t) {
        int code = 0;
        if constexpr (planes.byte) {
            code = bits_at(block + l.byte_plane, formats::key_byte(t, c), 255);
        }
        if constexpr (planes.nibble) {
            code = bits_at(block + l.nibble_plane, formats::key_nibble(t, c), 15);
        }
        if constexpr (planes.pair) {
            code |= bits_at(block + l.pair_plane, formats::key_pair(t, c), 3) << planes.pair_shift;
        }
        if constexpr (planes.single) {
            code |= bits_at(block + l.single_plane, formats::key_single(t, c), 1) << planes.single_shift;
        }
        out[t] = code;
    }
}

// Codes of token t for channels [first, first + n).
template <int kBits>
void value_codes(const std::byte* block, const BlockLayout& l, int t, int first, int n, int* out) noexcept {
    constexpr CodePlanes planes = formats::code_planes(kBits);
    for (int i = 0; i < n; ++i) {
        const int c = first + i;
        int code = 0;
        if constexpr (planes.byte) {
            code = bits_at(block + l.byte_plane, formats::value_byte(l.dim, t, c), 255);
        }
        if constexpr (planes.nibble) {
            code = bits_at(block + l.nibble_plane, formats::value_nibble(l.dim, t, c), 15);
        }
        if constexpr (planes.pair) {
            code |= bits_at(block + l.pair_plane, formats::value_pair(l.dim, t, c), 3) << planes.pair_shift;
        }
        if constexpr (planes.single) {
            code |= bits_at(block + l.single_plane, formats::value_single(l.dim, t, c), 1)
                    << planes.single_shift;
        }
        out[i] = code;
    }
}

// Rounds x[0..n) to integers of magnitude <= limit; returns the float value of one unit. NaN becomes -limit:
// the row's constant term carries the NaN to the result.
float to_q16(const float* x, int n, int limit, std::int32_t* out) noexcept {
    float largest = 0.0f;
    for (int i = 0; i < n; ++i) {
        const float magnitude = x[i] < 0.0f ? -x[i] : x[i];
        largest = magnitude > largest ? magnitude : largest;
    }
    const float bound = static_cast<float>(limit);
    const float inv = largest > 1e-30f ? bound / largest : 0.0f;
    for (int i = 0; i < n; ++i) {
        float t = x[i] * inv;
        t = t > -bound ? t : -bound;
        t = t < bound ? t : bound;
        out[i] = static_cast<std::int32_t>((t + kRoundMagic) - kRoundMagic);
    }
    return largest > 1e-30f ? largest / bound : 0.0f;
}

// x - q16 * step: what the first pass left out, for a second one of 16 more bits.
float residual_q16(const float* x, int n, int limit, const std::int32_t* q16, float step,
                   std::int32_t* out) noexcept {
    float rest[kMaxHeadDim];
    for (int i = 0; i < n; ++i) {
        const float done = static_cast<float>(q16[i]) * step;
        rest[i] = x[i] - done;
    }
    return to_q16(rest, n, limit, out);
}

// scores (+)= step * sum_c q16[c] * (code - centre) + constant, for one row.
template <int kBits>
void qk_pass(const QkArgs& a, const BlockLayout& l, int r, const std::int32_t* q16, float step,
             float constant, bool add) noexcept {
    constexpr int centre = formats::code_centre(kBits);
    std::int32_t sums[kPage] = {};
    for (int c = 0; c < a.keys.head_dim; ++c) {
        int codes[kPage];
        key_codes<kBits>(a.keys.data, l, c, codes);
        for (int t = 0; t < kPage; ++t) {
            sums[t] += q16[c] * (codes[t] - centre);
        }
    }
    for (int t = 0; t < kPage; ++t) {
        float& score = a.scores[r * kPage + t];
        const float part = static_cast<float>(sums[t]) * step + constant;
        score = add ? score + part : part;
    }
}

template <int kBits>
void qk_uniform(const QkArgs& a, const BlockLayout& l) noexcept {
    const int dim = a.keys.head_dim;
    const std::byte* block = a.keys.data;
    const int limit = formats::q16_limit(kBits, dim);
    const float noise = formats::score_noise(kBits, dim);
    constexpr int centre = formats::code_centre(kBits);

    for (int r = 0; r < a.n_rows; ++r) {
        const float* q = a.q + r * a.q_stride;
        float scaled[kMaxHeadDim];
        std::int32_t q16[kMaxHeadDim];
        float constant = 0.0f;
        for (int c = 0; c < dim; ++c) {
            const float scale = load_scale(block, l, c);
            scaled[c] = q[c] * scale;
            constant += q[c] * (load_param(block + l.offsets, c) + scale * static_cast<float>(centre));
        }
        const float step = to_q16(scaled, dim, limit, q16);
        qk_pass<kBits>(a, l, r, q16, step, constant, a.accumulate);
        if (step * noise > formats::kScoreNoiseAllowed) {
            std::int32_t rest[kMaxHeadDim];
            const float rest_step = residual_q16(scaled, dim, limit, q16, step, rest);
            qk_pass<kBits>(a, l, r, rest, rest_step, 0.0f, true);
        }
    }
}

template <int kBits>
void qk_tier(const QkArgs& a) noexcept {
    qk_uniform<kBits>(a, formats::block_layout_of_tier(kBits, a.keys.head_dim));
}
constexpr TierQk kTierQk = {qk_tier<2>, qk_tier<3>, qk_tier<4>, qk_tier<6>, fp16_to_fp32};

template <int kBits>
void qk(const QkArgs& a) noexcept {
    if (formats::is_tiered(true, kBits, a.keys.head_dim)) {
        qk_tiered(a, kTierQk);
    } else {
        qk_uniform<kBits>(a, formats::block_layout(true, kBits, a.keys.head_dim));
    }
}

// o += step * sum_t p16[t] * (code - centre) + constant + weight * mean, for one row.
template <int kBits>
void pv_pass(const PvArgs& a, const BlockLayout& l, int r, const std::int32_t* p16, float step,
             float constant, float weight) noexcept {
    constexpr int centre = formats::code_centre(kBits);
    const int dim = a.values.head_dim;
    std::int32_t sums[kMaxHeadDim] = {};
    for (int t = 0; t < kPage; ++t) {
        int codes[kMaxHeadDim];
        value_codes<kBits>(a.values.data, l, t, 0, dim, codes);
        for (int i = 0; i < dim; ++i) {
            sums[i] += p16[t] * (codes[i] - centre);
        }
    }
    float* o = a.o + r * a.o_stride;
    for (int i = 0; i < dim; ++i) {
        const float rest = constant + weight * load_param(a.values.data + l.offsets, i);
        o[i] += static_cast<float>(sums[i]) * step + rest;
    }
}

template <int kBits>
void pv(const PvArgs& a) noexcept {
    const std::byte* block = a.values.data;
    const BlockLayout l = formats::block_layout(false, kBits, a.values.head_dim);
    const int limit = formats::q16_limit(kBits, kPage);

    for (int r = 0; r < a.n_rows; ++r) {
        const float* p = a.p + r * kPage;
        float scaled[kPage];
        std::int32_t p16[kPage];
        float constant = 0.0f, weight = 0.0f, largest = 0.0f;
        for (int t = 0; t < kPage; ++t) {
            const float scale = load_scale(block, l, t);
            scaled[t] = p[t] * scale;
            constant += scaled[t] * formats::kCentreAboveMiddle;
            weight += p[t];
            largest = p[t] > largest ? p[t] : largest;
        }
        const float step = to_q16(scaled, kPage, limit, p16);
        pv_pass<kBits>(a, l, r, p16, step, constant, weight);
        if (largest > (a.mass == nullptr ? 0.0f : formats::kMassShareAllowed * a.mass[r])) {
            std::int32_t rest[kPage];
            const float rest_step = residual_q16(scaled, kPage, limit, p16, step, rest);
            pv_pass<kBits>(a, l, r, rest, rest_step, 0.0f, 0.0f);
        }
    }
}

float* decoded_at(const DecodeArgs& a, int t, int c) noexcept {
    return a.transposed ? a.out + c * a.out_stride + t : a.out + t * a.out_stride + c;
}

// order: see TierDecode; null: the block's channels are the head's.
template <int kBits>
void decode_uniform(const DecodeArgs& a, const BlockLayout& l, const std::uint8_t* order) noexcept {
    for (int c = 0; c < a.page.head_dim; ++c) {
        const int channel = order != nullptr ? 4 * order[c / 4] + c % 4 : c;
        const float scale = load_scale(a.page.data, l, c);
        const float zero = load_param(a.page.data + l.offsets, c);
        int codes[kPage];
        key_codes<kBits>(a.page.data, l, c, codes);
        for (int t = 0; t < kPage; ++t) {
            *decoded_at(a, t, channel) = static_cast<float>(codes[t]) * scale + zero;
        }
    }
}

template <int kBits>
void decode_tier(const DecodeArgs& a, const std::uint8_t* order) noexcept {
    decode_uniform<kBits>(a, formats::block_layout_of_tier(kBits, a.page.head_dim), order);
}
constexpr TierDecode kTierDecode = {decode_tier<2>, decode_tier<3>, decode_tier<4>, decode_tier<6>,
                                    fp16_to_fp32};

template <int kBits>
void decode_key(const DecodeArgs& a) noexcept {
    if (formats::is_tiered(true, kBits, a.page.head_dim)) {
        decode_key_tiered(a, kTierDecode);
    } else {
        decode_uniform<kBits>(a, formats::block_layout(true, kBits, a.page.head_dim), nullptr);
    }
}

template <int kBits>
void decode_value(const DecodeArgs& a) noexcept {
    const BlockLayout l = formats::block_layout(false, kBits, a.page.head_dim);
    for (int t = 0; t < kPage; ++t) {
        const float scale = load_scale(a.page.data, l, t);
        int codes[kMaxHeadDim];
        value_codes<kBits>(a.page.data, l, t, 0, a.page.head_dim, codes);
        for (int c = 0; c < a.page.head_dim; ++c) {
            const float code = static_cast<float>(codes[c]) - formats::middle_code(kBits);
            *decoded_at(a, t, c) = code * scale + load_param(a.page.data + l.offsets, c);
        }
    }
}

#define MIXED_KV_DEFINE_FORMAT(name, bits)                                                                 \
    void qk_##name##_scalar(const QkArgs& a) noexcept { qk<bits>(a); }                                     \
    void pv_##name##_scalar(const PvArgs& a) noexcept { pv<bits>(a); }                                     \
    void decode_key_##name##_scalar(const DecodeArgs& a) noexcept { decode_key<bits>(a); }                 \
    void decode_value_##name##_scalar(const DecodeArgs& a) noexcept { decode_value<bits>(a); }             \
    bool encode_key_##name##_scalar(const EncodeArgs& a) noexcept { return formats::encode_key(bits, a); } \
    bool encode_value_##name##_scalar(const EncodeArgs& a) noexcept { return formats::encode_value(bits, a); }
MIXED_KV_FOR_EACH_COLD_FORMAT(MIXED_KV_DEFINE_FORMAT)

}  // namespace

#define MIXED_KV_FORMAT_ROW(name, bits)                                                    \
    {qk_##name##_scalar,           pv_##name##_scalar,         decode_key_##name##_scalar, \
     decode_value_##name##_scalar, encode_key_##name##_scalar, encode_value_##name##_scalar},
const FormatKernels kFormats[] = {MIXED_KV_FOR_EACH_COLD_FORMAT(MIXED_KV_FORMAT_ROW)};

}  // namespace mixed_kv::kernels::scalar
