// Decodes cold pages to float, 4 lanes of four codes at a time: 4 tokens x 4 channels.

#include "formats/format_list.h"
#include "kernels/neon/codes.h"
#include "kernels/neon/neon.h"
#include "kernels/shared/fold.h"
#include "kernels/tiered_keys.h"

namespace mixed_kv::kernels::neon {
namespace {

using shared::unroll;

// Lane i, code k as floats: x[i], lane k.
inline void to_floats(uint8x16_t codes, float32x4_t (&x)[4]) noexcept {
    const uint16x8_t low = vmovl_u8(vget_low_u8(codes)), high = vmovl_high_u8(codes);
    x[0] = vcvtq_f32_u32(vmovl_u16(vget_low_u16(low)));
    x[1] = vcvtq_f32_u32(vmovl_high_u16(low));
    x[2] = vcvtq_f32_u32(vmovl_u16(vget_low_u16(high)));
    x[3] = vcvtq_f32_u32(vmovl_high_u16(high));
}

// x[i]: token t + i, channels c .. c + n - 1.
inline void store_tile(const DecodeArgs& a, int t, int c, int n, float32x4_t (&x)[4]) noexcept {
    if (a.transposed) {
        Lanes::transpose(x);
        for (int i = 0; i < n; ++i) vst1q_f32(a.out + (c + i) * a.out_stride + t, x[i]);
    } else if (n == 4) {
        for (int i = 0; i < 4; ++i) vst1q_f32(a.out + (t + i) * a.out_stride + c, x[i]);
    } else {
        for (int i = 0; i < 4; ++i) Lanes::store(a.out + (t + i) * a.out_stride + c, x[i], n);
    }
}

// order: see TierDecode; null: the block's channels are the head's.
template <int kBits>
void decode_keys(const DecodeArgs& a, const BlockLayout& l, const std::uint8_t* order) noexcept {
    float scales[kMaxHeadDim];
    shared::load_scales<Lanes>(a.page.data, l.scale_form, l.n_scales, scales);
    for (int g = 0; g < l.dim / 4; ++g) {
        const int n = a.page.head_dim - 4 * g < 4 ? a.page.head_dim - 4 * g : 4;
        const float32x4_t scale = vld1q_f32(scales + 4 * g);
        const float32x4_t zero = Lanes::load_halves(a.page.data + l.offsets + std::size_t(g) * 8);
        const int c = 4 * (order != nullptr ? order[g] : g);
        unroll<4>([&](auto field) {
            constexpr int kJ = decltype(field)::value;
            for (int t = 0; t < 16; t += 4) {
                float32x4_t x[4];
                to_floats(load_codes<kBits, kJ>(key_planes(a.page.data, l, g, kJ, t)), x);
                // Two roundings, as the definition has them: no fused multiply-add.
                for (float32x4_t& row : x) row = vaddq_f32(vmulq_f32(row, scale), zero);
                store_tile(a, 16 * kJ + t, c, n, x);
            }
        });
    }
}

template <int kBits>
void decode_tier(const DecodeArgs& a, const std::uint8_t* order) noexcept {
    decode_keys<kBits>(a, formats::block_layout_of_tier(kBits, a.page.head_dim), order);
}
constexpr TierDecode kTierDecode = {decode_tier<2>, decode_tier<3>, decode_tier<4>, decode_tier<6>,
                                    fp16_to_fp32};

template <int kBits>
void decode_key(const DecodeArgs& a) noexcept {
    if (formats::is_tiered(true, kBits, a.page.head_dim)) {
        decode_key_tiered(a, kTierDecode);
    } else {
        decode_keys<kBits>(a, formats::block_layout(true, kBits, a.page.head_dim), nullptr);
    }
}

template <int kBits>
void decode_value(const DecodeArgs& a) noexcept {
    const BlockLayout l = formats::block_layout(false, kBits, a.page.head_dim);
    float scales[kPage];
    shared::load_scales<Lanes>(a.page.data, l.scale_form, kPage, scales);
    const float32x4_t shift = vdupq_n_f32(formats::middle_code(kBits));
    for (int c = 0; c < a.page.head_dim; c += 4) {
        const int n = a.page.head_dim - c < 4 ? a.page.head_dim - c : 4;
        const float32x4_t offset = Lanes::load_halves(a.page.data + l.offsets + std::size_t(c) * 2);
        for (int u = 0; u < kPage / 16; ++u) {
            unroll<4>([&](auto field) {
                constexpr int kG = decltype(field)::value;
                const int t = 16 * u + 4 * kG;
                float32x4_t x[4];
                to_floats(load_codes<kBits, kG>(value_planes(a.page.data, l, u, kG, c)), x);
                Lanes::transpose(x);  // to a row of four channels for each token
                for (int i = 0; i < 4; ++i) {
                    const float32x4_t level = vsubq_f32(x[i], shift);
                    x[i] = vaddq_f32(vmulq_n_f32(level, scales[t + i]), offset);
                }
                store_tile(a, t, c, n, x);
            });
        }
    }
}

}  // namespace

#define MIXED_KV_DEFINE_FORMAT(name, bits)                                                     \
    void decode_key_##name##_neon(const DecodeArgs& args) noexcept { decode_key<bits>(args); } \
    void decode_value_##name##_neon(const DecodeArgs& args) noexcept { decode_value<bits>(args); }
MIXED_KV_FOR_EACH_COLD_FORMAT(MIXED_KV_DEFINE_FORMAT)

}  // namespace mixed_kv::kernels::neon
