#pragma once

#include <arm_neon.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

// The lane operations that src/kernels/shared/ is written over, four floats a vector. The dotprod and i8mm
// sets use them, too. Internal linkage: no compiled copy is shared with other files.
namespace mixed_kv::kernels::neon {
namespace {

struct Lanes {
    using F = float32x4_t;
    using I = int32x4_t;      // as many as F
    using M = uint32x4_t;     // all bits set or none
    using H = uint16x4_t;     // binary16, as many as F
    using Words = int16x8_t;  // of two I
    static constexpr int kWidth = 4;

    static F load(const float* p) noexcept { return vld1q_f32(p); }
    static void store(float* p, F x) noexcept { vst1q_f32(p, x); }
    static void store(std::int32_t* p, I x) noexcept { vst1q_s32(p, x); }
    // The first n < kWidth lanes, the rest 0, without touching what follows them; and back.
    static F load(const float* p, int n) noexcept {
        float lanes[kWidth] = {};
        std::memcpy(lanes, p, std::size_t(n) * sizeof lanes[0]);
        return load(lanes);
    }
    static void store(float* p, F x, int n) noexcept {
        float lanes[kWidth];
        store(lanes, x);
        std::memcpy(p, lanes, std::size_t(n) * sizeof lanes[0]);
    }
    static F all(float x) noexcept { return vdupq_n_f32(x); }
    static F add(F a, F b) noexcept { return vaddq_f32(a, b); }
    static F sub(F a, F b) noexcept { return vsubq_f32(a, b); }
    static F mul(F a, F b) noexcept { return vmulq_f32(a, b); }
    static F div(F a, F b) noexcept { return vdivq_f32(a, b); }
    static F fma(F a, F b, F c) noexcept { return vfmaq_f32(c, a, b); }   // a * b + c
    static F fnma(F a, F b, F c) noexcept { return vfmsq_f32(c, a, b); }  // c - a * b
    static F abs(F x) noexcept { return vabsq_f32(x); }
    static F neg(F x) noexcept { return vnegq_f32(x); }
    static F copy_sign(F magnitude, F sign) noexcept {
        return vbslq_f32(vdupq_n_u32(0x80000000u), sign, magnitude);
    }
    static F round(F x) noexcept { return vrndnq_f32(x); }  // to integers, ties to even
    // Of a number and NaN, the number.
    static F max(F a, F b) noexcept { return vmaxnmq_f32(a, b); }
    static F min(F a, F b) noexcept { return vminnmq_f32(a, b); }

    static M less(F a, F b) noexcept { return vcltq_f32(a, b); }  // false for NaN, as all comparisons
    static M equal(F a, F b) noexcept { return vceqq_f32(a, b); }
    static F select(M m, F a, F b) noexcept { return vbslq_f32(m, a, b); }  // m ? a : b
    static F keep(M m, F x) noexcept { return vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(x), m)); }
    static M first(int n) noexcept {  // lanes 0 .. n - 1
        static constexpr std::int32_t kIndex[kWidth] = {0, 1, 2, 3};
        return vcltq_s32(vld1q_s32(kIndex), vdupq_n_s32(n));
    }
    // Bit r of the result is lane r.
    static unsigned mask_bits(M m) noexcept {
        static constexpr std::uint32_t kBits[kWidth] = {1, 2, 4, 8};
        return vaddvq_u32(vandq_u32(m, vld1q_u32(kBits)));
    }

    static I to_int(F x) noexcept { return vcvtnq_s32_f32(x); }  // ties to even; 0 for NaN
    static F to_float(I x) noexcept { return vcvtq_f32_s32(x); }
    static I add(I a, I b) noexcept { return vaddq_s32(a, b); }
    static F exponent(F z) noexcept {  // the float whose exponent field is the low 9 bits of z
        return vreinterpretq_f32_s32(vshlq_n_s32(vreinterpretq_s32_f32(z), 23));
    }
    static Words words(I a, I b) noexcept { return vqmovn_high_s32(vqmovn_s32(a), b); }
    static I add_words(I sum, Words w) noexcept { return vpadalq_s16(sum, w); }
    static I no_sum() noexcept { return vdupq_n_s32(0); }

    static F from_halves(H h) noexcept { return vcvt_f32_f16(vreinterpret_f16_u16(h)); }
    static H to_halves(F x) noexcept { return vreinterpret_u16_f16(vcvt_f16_f32(x)); }
    static H load_h(const void* p) noexcept {
        H h;
        std::memcpy(&h, p, sizeof h);
        return h;
    }
    static void store_h(void* p, H h) noexcept { std::memcpy(p, &h, sizeof h); }
    static F load_halves(const void* p) noexcept { return from_halves(load_h(p)); }
    static F load_halves(const void* p, int n) noexcept {
        std::uint16_t buffer[kWidth] = {};
        std::memcpy(buffer, p, std::size_t(n) * sizeof buffer[0]);
        return load_halves(buffer);
    }
    static F load_byte_scales(const void* p) noexcept {  // see formats::ScaleForm
        return from_halves(vshl_n_u16(vget_low_u16(vmovl_u8(load_4(p))), 7));
    }
    // Scales as their bytes.
    static void store_byte_scales(void* p, H h) noexcept {
        const uint8x8_t bytes = vmovn_u16(vcombine_u16(vshr_n_u16(h, 7), vdup_n_u16(0)));
        const std::uint32_t four = vget_lane_u32(vreinterpret_u32_u8(bytes), 0);
        std::memcpy(p, &four, sizeof four);
    }
    // (h + below) & ~below, below one less than a power of two.
    static H round_up_halves(H h, std::uint16_t below) noexcept {
        return vbic_u16(vadd_u16(h, vdup_n_u16(below)), vdup_n_u16(below));
    }
    static H select_at_least(H h, std::uint16_t limit, H a, H b) noexcept {  // h >= limit ? a : b, unsigned
        return vbsl_u16(vcge_u16(h, vdup_n_u16(limit)), a, b);
    }
    static H select(M m, H a, H b) noexcept { return vbsl_u16(vmovn_u32(m), a, b); }
    static H no_halves() noexcept { return vdup_n_u16(0); }

    // Lane r of the result: the lanes of x[r] taken together, in the same order for every number of rows.
    template <int kRows>
    static F sum_each(const F (&x)[kRows]) noexcept {
        constexpr int b = kRows > 1 ? 1 : 0, c = kRows > 2 ? 2 : 0, d = kRows > 3 ? 3 : 0;
        return vpaddq_f32(vpaddq_f32(x[0], x[b]), vpaddq_f32(x[c], x[d]));
    }
    template <int kRows>
    static F max_each(const F (&x)[kRows]) noexcept {
        constexpr int b = kRows > 1 ? 1 : 0, c = kRows > 2 ? 2 : 0, d = kRows > 3 ? 3 : 0;
        return vpmaxnmq_f32(vpmaxnmq_f32(x[0], x[b]), vpmaxnmq_f32(x[c], x[d]));
    }
    template <int kRows>
    static I sum_each(const I (&x)[kRows]) noexcept {
        constexpr int b = kRows > 1 ? 1 : 0, c = kRows > 2 ? 2 : 0, d = kRows > 3 ? 3 : 0;
        return vpaddq_s32(vpaddq_s32(x[0], x[b]), vpaddq_s32(x[c], x[d]));
    }
    template <int kShift>
    static I shifted_left(I x) noexcept {
        return vshlq_n_s32(x, kShift);
    }
    static I neg(I x) noexcept { return vnegq_s32(x); }
    static float max_of(F x) noexcept { return vmaxnmvq_f32(x); }

    // Columns of the 4 x 4 matrix with these rows.
    static void transpose(F (&r)[4]) noexcept {
        const F a = vtrn1q_f32(r[0], r[1]), b = vtrn2q_f32(r[0], r[1]);
        const F c = vtrn1q_f32(r[2], r[3]), d = vtrn2q_f32(r[2], r[3]);
        r[0] = pair_low(a, c), r[2] = pair_high(a, c);
        r[1] = pair_low(b, d), r[3] = pair_high(b, d);
    }

    // An instruction of its own: calls of __builtin_prefetch in lambdas are dropped by GCC 12.
    static void prefetch(const std::byte* p) noexcept { asm volatile("prfm pldl1keep, %a0" : : "p"(p)); }
    // To L2: one page and its query rows fill L1.
    static void prefetch_far(const std::byte* p) noexcept { asm volatile("prfm pldl2keep, %a0" : : "p"(p)); }

  private:
    static uint8x8_t load_4(const void* p) noexcept {
        std::uint32_t bytes;
        std::memcpy(&bytes, p, sizeof bytes);
        return vreinterpret_u8_u32(vdup_n_u32(bytes));
    }
    static F pair_low(F a, F b) noexcept {
        return vreinterpretq_f32_f64(vtrn1q_f64(vreinterpretq_f64_f32(a), vreinterpretq_f64_f32(b)));
    }
    static F pair_high(F a, F b) noexcept {
        return vreinterpretq_f32_f64(vtrn2q_f64(vreinterpretq_f64_f32(a), vreinterpretq_f64_f32(b)));
    }
};

}  // namespace
}  // namespace mixed_kv::kernels::neon
