#pragma once

#include "kernels/dotprod/dotprod.h"
#include "kernels/neon/codes.h"
#include "kernels/neon/neon.h"
#include "kernels/shared/cold_attention.h"

// Exact integer sums of codes times 16-bit integers. Such an integer is 256 high + low, two signed bytes;
// SDOT multiplies the four codes of each lane with four of either and adds them to the lane, so a vector of 4
// tokens (keys) or channels (values) takes two registers per row. Codes are signed to SDOT: those of 8 bits
// are centred, narrower ones fit.
//
// Register tile: up to 4 query rows x 2 (1 or 2 rows: 4) vectors x 2 parts, 16 registers of sums.
namespace mixed_kv::kernels::dotprod {
namespace {

using formats::BlockLayout;
using neon::Lanes;
using shared::Ahead;
using shared::Pass;
using shared::unroll;

template <int kBits>
inline int8x16_t signed_codes(uint8x16_t codes) noexcept {
    if constexpr (kBits == 8) codes = veorq_u8(codes, vdupq_n_u8(0x80));
    return vreinterpretq_s8_u8(codes);
}

template <int kBits>
struct Packed {
    // Channel group g, tokens 16 kJ + 4 j .. + 3.
    template <int kJ>
    static int8x16_t keys(const std::byte* block, const BlockLayout& l, int g, int j) noexcept {
        return signed_codes<kBits>(neon::load_codes<kBits, kJ>(neon::key_planes(block, l, g, kJ, 4 * j)));
    }
    // Tokens 16 u + 4 kG .. + 3, channels 4 v .. + 3.
    template <int kG>
    static int8x16_t values(const std::byte* block, const BlockLayout& l, int u, int v) noexcept {
        return signed_codes<kBits>(neon::load_codes<kBits, kG>(neon::value_planes(block, l, u, kG, 4 * v)));
    }
};

// As unpack_keys() and unpack_values() leave them: in the order in which tiles take them.
struct Unpacked {
    static std::ptrdiff_t key_at(const BlockLayout& l, int field, int g, int j) noexcept {
        return (std::ptrdiff_t(field / 2 * 4 + j) * (l.dim / 4) + g) * 32 + field % 2 * 16;
    }
    static std::ptrdiff_t value_at(int u, int field, int v) noexcept {
        return std::ptrdiff_t(v / 2 * 16 + 4 * u + field) * 32 + v % 2 * 16;
    }
    template <int kJ>
    static int8x16_t keys(const std::byte* codes, const BlockLayout& l, int g, int j) noexcept {
        return load(codes + key_at(l, kJ, g, j));
    }
    template <int kG>
    static int8x16_t values(const std::byte* codes, const BlockLayout&, int u, int v) noexcept {
        return load(codes + value_at(u, kG, v));
    }
    static void store(std::byte* p, int8x16_t codes) noexcept {
        vst1q_s8(reinterpret_cast<std::int8_t*>(p), codes);
    }

  private:
    static int8x16_t load(const std::byte* p) noexcept {
        return vld1q_s8(reinterpret_cast<const std::int8_t*>(p));
    }
};

struct Sum {
    int32x4_t high, low;
};

template <int kRows, int kVectors>
using Sums = Sum[kRows][kVectors];

template <int kRows, int kVectors>
inline __attribute__((always_inline)) void start_sums(Sums<kRows, kVectors>& sum, const Pass& pass) noexcept {
    unroll<kRows>([&](auto r) __attribute__((always_inline)) {
        unroll<kVectors>([&](auto v) __attribute__((always_inline)) {
            sum[r.value][v.value] = {vdupq_n_s32(0), vdupq_n_s32(pass.start[r.value])};
        });
    });
}

// integers: [high, low][4 rows][4] of the codes' four.
template <int kRows, int kVectors>
inline __attribute__((always_inline)) void add_products(Sums<kRows, kVectors>& sum,
                                                        const int8x16_t (&codes)[kVectors],
                                                        const std::byte* integers) noexcept {
    const auto* q = reinterpret_cast<const std::int8_t*>(integers);
    const int8x16_t high = vld1q_s8(q), low = vld1q_s8(q + 16);
    unroll<kRows>([&](auto row) __attribute__((always_inline)) {
        constexpr int r = decltype(row)::value;
        unroll<kVectors>([&](auto v) __attribute__((always_inline)) {
            Sum& s = sum[r][v.value];
            s.high = vdotq_laneq_s32(s.high, codes[v.value], high, r);
            s.low = vdotq_laneq_s32(s.low, codes[v.value], low, r);
        });
    });
}

inline int32x4_t whole(const Sum& sum) noexcept { return vaddq_s32(vshlq_n_s32(sum.high, 8), sum.low); }

template <int kRows>
constexpr int kTileVectors = kRows <= 2 ? 4 : 2;

struct Set {
    using Lanes = neon::Lanes;
    template <int kBits>
    using Packed = dotprod::Packed<kBits>;
    using Unpacked = dotprod::Unpacked;
    static constexpr int kValuesApart = 4;
    static constexpr int kWordsBytes = 64;
    static constexpr int kQkTiles = 4;
    static constexpr int kPvTilesPer16 = 1;
    static constexpr int start_shift(int bits) { return bits == 8 ? -1 : bits - 1; }
    static constexpr auto fp16_to_fp32 = neon::fp16_to_fp32;

    // Two quads of each row: [quad][high, low][4 rows][4]. The low byte is signed, so the high part is the
    // high byte of the integer + 128.
    template <int kRows>
    static void put_integers(std::byte* out, const int16x8_t (&words)[kRows]) noexcept {
        constexpr int b = kRows > 1 ? 1 : 0, c = kRows > 2 ? 2 : 0, d = kRows > 3 ? 3 : 0;
        const auto put = [out](int part, int8x16_t rows01, int8x16_t rows23) {
            const int32x4_t x = vreinterpretq_s32_s8(rows01), y = vreinterpretq_s32_s8(rows23);
            auto* to = reinterpret_cast<std::int8_t*>(out) + part * 16;
            vst1q_s8(to, vreinterpretq_s8_s32(vuzp1q_s32(x, y)));
            vst1q_s8(to + 32, vreinterpretq_s8_s32(vuzp2q_s32(x, y)));
        };
        put(0, vrshrn_high_n_s16(vrshrn_n_s16(words[0], 8), words[b], 8),
            vrshrn_high_n_s16(vrshrn_n_s16(words[c], 8), words[d], 8));
        put(1, vmovn_high_s16(vmovn_s16(words[0]), words[b]), vmovn_high_s16(vmovn_s16(words[c]), words[d]));
    }

    template <typename Codes, int kFirst, int kRows>
    static inline __attribute__((always_inline)) void qk_tile(const std::byte* codes, const BlockLayout& l,
                                                              const Pass& pass, int j, float* scores,
                                                              bool add) noexcept {
        constexpr int kVectors = kTileVectors<kRows>;
        Sums<kRows, kVectors> sum;
        start_sums<kRows, kVectors>(sum, pass);
        const std::byte* q = pass.integers;
        for (int g = 0; g < l.dim / 4; ++g, q += 32) {
            int8x16_t x[kVectors];
            unroll<kVectors>([&](auto v) __attribute__((always_inline)) {
                x[v.value] = Codes::template keys<kFirst + decltype(v)::value>(codes, l, g, j);
            });
            add_products<kRows, kVectors>(sum, x, q);
        }
        unroll<kRows>([&](auto row) __attribute__((always_inline)) {
            constexpr int r = decltype(row)::value;
            const shared::RowFactors<Lanes> factors(pass, r);
            unroll<kVectors>([&](auto v) __attribute__((always_inline)) {
                float* out = scores + r * kPage + 16 * (kFirst + v.value) + 4 * j;
                shared::write_scores<Lanes>(out, whole(sum[r][v.value]), factors, add);
            });
        });
    }

    template <typename Codes, int kRows>
    static __attribute__((noinline)) void qk_rows(const std::byte* codes, const BlockLayout& l,
                                                  const Pass& pass, float* scores, bool add,
                                                  Ahead<Lanes>& ahead) noexcept {
        for (int j = 0; j < 4; ++j) {
            ahead.tile();
            qk_tile<Codes, 0, kRows>(codes, l, pass, j, scores, add);
            if constexpr (kTileVectors<kRows> == 2) qk_tile<Codes, 2, kRows>(codes, l, pass, j, scores, add);
        }
    }

    template <typename Codes, int kRows>
    static __attribute__((noinline)) void pv_rows(const std::byte* codes, const BlockLayout& l,
                                                  const Pass& pass, const float* offset, float* o,
                                                  std::ptrdiff_t stride, Ahead<Lanes>& ahead) noexcept {
        constexpr int kVectors = kTileVectors<kRows>;
        for (int v0 = 0; v0 < l.dim / 4; v0 += kVectors) {
            if (v0 % 4 == 0) ahead.tile();
            Sums<kRows, kVectors> sum;
            start_sums<kRows, kVectors>(sum, pass);
            const std::byte* p = pass.integers;
            for (int u = 0; u < kPage / 16; ++u) {
                unroll<4>([&](auto field) __attribute__((always_inline)) {
                    constexpr int kG = decltype(field)::value;
                    int8x16_t x[kVectors];
                    unroll<kVectors>([&](auto v) __attribute__((always_inline)) {
                        x[v.value] = Codes::template values<kG>(codes, l, u, v0 + v.value);
                    });
                    add_products<kRows, kVectors>(sum, x, p);
                    p += 32;
                });
            }
            unroll<kRows>([&](auto row) __attribute__((always_inline)) {
                constexpr int r = decltype(row)::value;
                const shared::RowFactors<Lanes> factors(pass, r);
                unroll<kVectors>([&](auto v) __attribute__((always_inline)) {
                    const int c = 4 * (v0 + v.value);
                    shared::add_values<Lanes>(o + r * stride + c, whole(sum[r][v.value]), factors,
                                              offset + c);
                });
            });
        }
    }

    template <int kBits>
    static void unpack_keys(const std::byte* block, const BlockLayout& l, std::byte* out) noexcept {
        for (int g = 0; g < l.dim / 4; ++g) {
            for (int j = 0; j < 4; ++j) {
                unroll<4>([&](auto field) __attribute__((always_inline)) {
                    constexpr int kJ = decltype(field)::value;
                    Unpacked::store(out + Unpacked::key_at(l, kJ, g, j),
                                    Packed<kBits>::template keys<kJ>(block, l, g, j));
                });
            }
        }
    }

    template <int kBits>
    static void unpack_values(const std::byte* block, const BlockLayout& l, std::byte* out) noexcept {
        for (int u = 0; u < kPage / 16; ++u) {
            for (int v = 0; v < l.dim / 4; ++v) {
                unroll<4>([&](auto field) __attribute__((always_inline)) {
                    constexpr int kG = decltype(field)::value;
                    Unpacked::store(out + Unpacked::value_at(u, kG, v),
                                    Packed<kBits>::template values<kG>(block, l, u, v));
                });
            }
        }
    }
};

}  // namespace
}  // namespace mixed_kv::kernels::dotprod
