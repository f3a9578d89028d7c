#pragma once

#include "kernels/neon/codes.h"
#include "kernels/shared/encode.h"

// Writes code planes: 16 bytes, four lanes of four codes, at a time.
namespace mixed_kv::kernels::neon {
namespace {

using shared::Affine;
using shared::ScaleForm;
using shared::unroll;

// Codes of x[i][4 lanes] for i = 0..n-1 (a multiple of 4) as bytes [n][4].
inline void make_codes(const float* x, int n, const Affine<Lanes>& affine, float32x4_t max_code,
                       std::uint8_t* out) noexcept {
    for (int i = 0; i < n; i += 4, x += 16, out += 16) {
        int32x4_t code[4];
        unroll<4>([&](auto k) { code[k.value] = shared::code_of<Lanes>(x + 4 * k.value, affine, max_code); });
        const int16x8_t a = Lanes::words(code[0], code[1]), b = Lanes::words(code[2], code[3]);
        vst1q_u8(out, vqmovun_high_s16(vqmovun_s16(a), b));
    }
}

inline void store(std::byte* p, uint8x16_t x) noexcept { vst1q_u8(reinterpret_cast<std::uint8_t*>(p), x); }

// The pair of each code, in bits 0 and 1; the bits above may hold anything.
template <int kShift>
inline uint8x16_t pair_of(uint8x16_t codes) noexcept {
    if constexpr (kShift == 0) {
        return codes;
    } else {
        return vshrq_n_u8(codes, kShift);
    }
}

// Bit kBit of every byte to two bytes.
template <int kBit>
inline void store_single(std::byte* out, uint8x16_t codes) noexcept {
    static constexpr std::uint8_t kPlace[16] = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
    const uint8x16_t bits = vandq_u8(vtstq_u8(codes, vdupq_n_u8(1 << kBit)), vld1q_u8(kPlace));
    out[0] = std::byte(vaddv_u8(vget_low_u8(bits)));
    out[1] = std::byte(vaddv_u8(vget_high_u8(bits)));
}

}  // namespace
}  // namespace mixed_kv::kernels::neon
