#pragma once

#include "kernels/neon/codes.h"
#include "kernels/neon/neon.h"
#include "kernels/shared/cold_attention.h"

// Exact integer sums of codes times 16-bit integers with instructions that every 64-bit Arm CPU has: SMLAL
// multiplies four codes, widened to 16 bits and centred by one instruction, with one integer of a row. A
// vector is 16 tokens (keys) or channels (values) of one of the four codes of their lanes, which LD4
// separates.
//
// Register tile: up to 4 query rows x 16 tokens (channels), 16 registers of sums.
namespace mixed_kv::kernels::neon {
namespace {

using shared::Ahead;
using shared::Int;
using shared::Pass;
using shared::unroll;

// 16 lanes of four codes, apart.
using Codes16 = uint8x16x4_t;

template <int kBits>
struct Packed {
    template <int kJ>
    static Codes16 keys(const std::byte* block, const BlockLayout& l, int g) noexcept {
        return load<kJ>(key_planes(block, l, g, kJ, 0));
    }
    template <int kG>
    static Codes16 values(const std::byte* block, const BlockLayout& l, int u, int v) noexcept {
        return load<kG>(value_planes(block, l, u, kG, 16 * v));
    }
    static constexpr int centre = formats::code_centre(kBits);

  private:
    static Codes16 load_lines(const std::byte* p) noexcept {
        return vld4q_u8(reinterpret_cast<const std::uint8_t*>(p));
    }
    template <int kField>
    static Codes16 load(const PlanePointers& p) noexcept {
        constexpr formats::CodePlanes planes = formats::code_planes(kBits);
        Codes16 byte{}, nibble{}, pair{}, codes;
        if constexpr (planes.byte) byte = load_lines(p.byte);
        if constexpr (planes.nibble) nibble = load_lines(p.nibble);
        if constexpr (planes.pair) pair = load_lines(p.pair);
        uint8x16_t mask = vdupq_n_u8(0);  // bit i of byte t: lane t, code i
        if constexpr (planes.single) {
            const uint8x8_t two = vld1_u8(reinterpret_cast<const std::uint8_t*>(p.single));
            mask = vzip1q_u8(vcombine_u8(two, two), vcombine_u8(vshr_n_u8(two, 4), two));
        }
        unroll<4>([&](auto i) __attribute__((always_inline)) {
            constexpr int kI = decltype(i)::value;
            const uint8x16_t single = vtstq_u8(mask, vdupq_n_u8(1 << kI));
            codes.val[kI] = join_planes<kBits, kField>(byte.val[kI], nibble.val[kI], pair.val[kI], single);
        });
        return codes;
    }
};

// As unpack_keys() and unpack_values() leave them: in the order in which tiles take them, moved to a centre
// that serves all widths.
struct Unpacked {
    static constexpr int centre = 128;
    static std::ptrdiff_t key_at(const BlockLayout& l, int field, int g) noexcept {
        return (std::ptrdiff_t(field) * (l.dim / 4) + g) * 64;
    }
    static std::ptrdiff_t value_at(int u, int field, int v) noexcept {
        return std::ptrdiff_t(v * 16 + 4 * u + field) * 64;
    }
    template <int kJ>
    static Codes16 keys(const std::byte* codes, const BlockLayout& l, int g) noexcept {
        return load(codes + key_at(l, kJ, g));
    }
    template <int kG>
    static Codes16 values(const std::byte* codes, const BlockLayout&, int u, int v) noexcept {
        return load(codes + value_at(u, kG, v));
    }
    template <int kBits>
    static void store(std::byte* p, const Codes16& codes) noexcept {
        const uint8x16_t move = vdupq_n_u8(centre - formats::code_centre(kBits));
        unroll<4>([&](auto i) __attribute__((always_inline)) {
            vst1q_u8(reinterpret_cast<std::uint8_t*>(p) + 16 * i.value, vaddq_u8(codes.val[i.value], move));
        });
    }

  private:
    static Codes16 load(const std::byte* p) noexcept {
        Codes16 codes;
        unroll<4>([&](auto i)
                      __attribute__((always_inline)) { codes.val[i.value] = load_bytes(p + 16 * i.value); });
        return codes;
    }
};

template <int kRows>
using Sums = int32x4_t[kRows][4];

template <int kRows>
inline __attribute__((always_inline)) void clear(Sums<kRows>& sum) noexcept {
    unroll<kRows>([&](auto r) __attribute__((always_inline)) {
        unroll<4>([&](auto v) __attribute__((always_inline)) { sum[r.value][v.value] = vdupq_n_s32(0); });
    });
}

// integers: [4 rows][4] of these codes.
template <int kCentre, int kRows>
inline __attribute__((always_inline)) void add_products(Sums<kRows>& sum, const Codes16& codes,
                                                        const std::byte* integers) noexcept {
    const uint8x16_t centre = vdupq_n_u8(kCentre);
    int16x8_t q[(kRows + 1) / 2];  // two rows each
    unroll<(kRows + 1) / 2>([&](auto i) __attribute__((always_inline)) {
        q[i.value] = vld1q_s16(reinterpret_cast<const std::int16_t*>(integers) + 8 * i.value);
    });
    unroll<4>([&](auto channel) __attribute__((always_inline)) {
        constexpr int kI = decltype(channel)::value;
        const int16x8_t low =
            vreinterpretq_s16_u16(vsubl_u8(vget_low_u8(codes.val[kI]), vget_low_u8(centre)));
        const int16x8_t high = vreinterpretq_s16_u16(vsubl_high_u8(codes.val[kI], centre));
        unroll<kRows>([&](auto row) __attribute__((always_inline)) {
            constexpr int r = decltype(row)::value, kLane = r % 2 * 4 + kI;
            const int16x8_t x = q[r / 2];
            sum[r][0] = vmlal_laneq_s16(sum[r][0], vget_low_s16(low), x, kLane);
            sum[r][1] = vmlal_high_laneq_s16(sum[r][1], low, x, kLane);
            sum[r][2] = vmlal_laneq_s16(sum[r][2], vget_low_s16(high), x, kLane);
            sum[r][3] = vmlal_high_laneq_s16(sum[r][3], high, x, kLane);
        });
    });
}

struct Set {
    using Lanes = neon::Lanes;
    template <int kBits>
    using Packed = neon::Packed<kBits>;
    using Unpacked = neon::Unpacked;
    static constexpr int kValuesApart = 4;
    static constexpr int kWordsBytes = 64;
    static constexpr int kQkTiles = 4;
    static constexpr int kPvTilesPer16 = 1;
    static constexpr int start_shift(int) { return -1; }  // codes are centred
    static constexpr auto fp16_to_fp32 = neon::fp16_to_fp32;

    // Two quads of each row: [quad][4 rows][4].
    template <int kRows>
    static void put_integers(std::byte* out, const int16x8_t (&words)[kRows]) noexcept {
        auto* to = reinterpret_cast<std::int16_t*>(out);
        unroll<kRows>([&](auto r) __attribute__((always_inline)) {
            vst1_s16(to + 4 * r.value, vget_low_s16(words[r.value]));
            vst1_s16(to + 16 + 4 * r.value, vget_high_s16(words[r.value]));
        });
    }

    template <typename Codes, int kRows>
    static __attribute__((noinline)) void qk_rows(const std::byte* codes, const BlockLayout& l,
                                                  const Pass& pass, float* scores, bool add,
                                                  Ahead<Lanes>& ahead) noexcept {
        unroll<4>([&](auto field) __attribute__((always_inline)) {
            constexpr int kJ = decltype(field)::value;
            ahead.tile();
            Sums<kRows> sum;
            clear<kRows>(sum);
            const std::byte* q = pass.integers;
            for (int g = 0; g < l.dim / 4; ++g, q += 32) {
                add_products<Codes::centre, kRows>(sum, Codes::template keys<kJ>(codes, l, g), q);
            }
            unroll<kRows>([&](auto row) __attribute__((always_inline)) {
                constexpr int r = decltype(row)::value;
                const shared::RowFactors<Lanes> factors(pass, r);
                unroll<4>([&](auto v) __attribute__((always_inline)) {
                    shared::write_scores<Lanes>(scores + r * kPage + 16 * kJ + 4 * v.value, sum[r][v.value],
                                                factors, add);
                });
            });
        });
    }

    template <typename Codes, int kRows>
    static __attribute__((noinline)) void pv_rows(const std::byte* codes, const BlockLayout& l,
                                                  const Pass& pass, const float* offset, float* o,
                                                  std::ptrdiff_t stride, Ahead<Lanes>& ahead) noexcept {
        for (int v = 0; v < l.dim / 16; ++v) {
            ahead.tile();
            Sums<kRows> sum;
            clear<kRows>(sum);
            const std::byte* p = pass.integers;
            for (int u = 0; u < kPage / 16; ++u) {
                unroll<4>([&](auto field) __attribute__((always_inline)) {
                    constexpr int kG = decltype(field)::value;
                    add_products<Codes::centre, kRows>(sum, Codes::template values<kG>(codes, l, u, v), p);
                    p += 32;
                });
            }
            unroll<kRows>([&](auto row) __attribute__((always_inline)) {
                constexpr int r = decltype(row)::value;
                const shared::RowFactors<Lanes> factors(pass, r);
                unroll<4>([&](auto i) __attribute__((always_inline)) {
                    const int c = 16 * v + 4 * i.value;
                    shared::add_values<Lanes>(o + r * stride + c, sum[r][i.value], factors, offset + c);
                });
            });
        }
    }

    template <int kBits>
    static void unpack_keys(const std::byte* block, const BlockLayout& l, std::byte* out) noexcept {
        for (int g = 0; g < l.dim / 4; ++g) {
            unroll<4>([&](auto field) __attribute__((always_inline)) {
                constexpr int kJ = decltype(field)::value;
                Unpacked::store<kBits>(out + Unpacked::key_at(l, kJ, g),
                                       Packed<kBits>::template keys<kJ>(block, l, g));
            });
        }
    }

    template <int kBits>
    static void unpack_values(const std::byte* block, const BlockLayout& l, std::byte* out) noexcept {
        for (int u = 0; u < kPage / 16; ++u) {
            for (int v = 0; v < l.dim / 16; ++v) {
                unroll<4>([&](auto field) __attribute__((always_inline)) {
                    constexpr int kG = decltype(field)::value;
                    Unpacked::store<kBits>(out + Unpacked::value_at(u, kG, v),
                                           Packed<kBits>::template values<kG>(block, l, u, v));
                });
            }
        }
    }
};

}  // namespace
}  // namespace mixed_kv::kernels::neon
