#pragma once

#include "kernels/i8mm/i8mm.h"
#include "kernels/neon/codes.h"
#include "kernels/neon/neon.h"
#include "kernels/shared/cold_attention.h"

// Exact integer sums of codes times 16-bit integers. Such an integer is 256 high + low, two signed bytes.
// USMMLA multiplies 2 x 8 unsigned bytes with 8 x 2 signed ones: eight codes of each of two tokens (keys) or
// channels (values) with both parts of eight integers of a row. The eight codes are two lanes of the planes,
// which ZIP joins before they are unpacked: neighbouring groups of channels, or quads of tokens 16 apart,
// whose codes lie at the same bits.
//
// Register tile: up to 4 query rows x 4 (1 or 2 rows: 8) pairs of tokens (channels), 16 registers of sums.
namespace mixed_kv::kernels::i8mm {
namespace {

using formats::BlockLayout;
using neon::Lanes;
using shared::Ahead;
using shared::Pass;
using shared::unroll;

// Eight codes of each of four tokens (channels): of the first two and the last two.
struct Pairs {
    uint8x16_t first, last;
};

inline __attribute__((always_inline)) Pairs zip_lanes(uint8x16_t a, uint8x16_t b) noexcept {
    const uint32x4_t x = vreinterpretq_u32_u8(a), y = vreinterpretq_u32_u8(b);
    return {vreinterpretq_u8_u32(vzip1q_u32(x, y)), vreinterpretq_u8_u32(vzip2q_u32(x, y))};
}

// The codes of two times four lanes.
template <int kBits, int kField>
inline __attribute__((always_inline)) Pairs join_lanes(const neon::PlaneBytes& a,
                                                       const neon::PlaneBytes& b) noexcept {
    constexpr formats::CodePlanes planes = formats::code_planes(kBits);
    Pairs byte{}, nibble{}, pair{}, single{};
    if constexpr (planes.byte) byte = zip_lanes(a.byte, b.byte);
    if constexpr (planes.nibble) nibble = zip_lanes(a.nibble, b.nibble);
    if constexpr (planes.pair) pair = zip_lanes(a.pair, b.pair);
    if constexpr (planes.single) single = zip_lanes(a.single, b.single);
    return {neon::join_planes<kBits, kField>(byte.first, nibble.first, pair.first, single.first),
            neon::join_planes<kBits, kField>(byte.last, nibble.last, pair.last, single.last)};
}

template <int kBits>
struct Packed {
    // Channels 8 unit .. + 7, tokens 16 kJ + 4 j .. + 3; kWhole: the block has the last four channels.
    template <int kJ, bool kWhole>
    static inline __attribute__((always_inline)) Pairs keys(const std::byte* block, const BlockLayout& l,
                                                            int unit, int j) noexcept {
        const auto a = neon::load_planes<kBits>(neon::key_planes(block, l, 2 * unit, kJ, 4 * j));
        neon::PlaneBytes b{};
        if constexpr (kWhole) {
            b = neon::load_planes<kBits>(neon::key_planes(block, l, 2 * unit + 1, kJ, 4 * j));
        }
        return join_lanes<kBits, kJ>(a, b);
    }
    // Tokens 32 half + 4 kG .. + 3 and those 16 further, channels 4 v .. + 3.
    template <int kG>
    static inline __attribute__((always_inline)) Pairs values(const std::byte* block, const BlockLayout& l,
                                                              int half, int v) noexcept {
        return join_lanes<kBits, kG>(
            neon::load_planes<kBits>(neon::value_planes(block, l, 2 * half, kG, 4 * v)),
            neon::load_planes<kBits>(neon::value_planes(block, l, 2 * half + 1, kG, 4 * v)));
    }
};

constexpr int units_of(const BlockLayout& l) { return (l.dim + 7) / 8; }

// As unpack_keys() and unpack_values() leave them: in the order in which tiles take them.
struct Unpacked {
    static std::ptrdiff_t key_at(const BlockLayout& l, int field, int unit, int j) noexcept {
        return (std::ptrdiff_t(field / 2 * 4 + j) * units_of(l) + unit) * 64 + field % 2 * 32;
    }
    static std::ptrdiff_t value_at(int half, int field, int v) noexcept {
        return std::ptrdiff_t(v / 2 * 8 + 4 * half + field) * 64 + v % 2 * 32;
    }
    template <int kJ, bool>
    static inline __attribute__((always_inline)) Pairs keys(const std::byte* codes, const BlockLayout& l,
                                                            int unit, int j) noexcept {
        return load(codes + key_at(l, kJ, unit, j));
    }
    template <int kG>
    static inline __attribute__((always_inline)) Pairs values(const std::byte* codes, const BlockLayout&,
                                                              int half, int v) noexcept {
        return load(codes + value_at(half, kG, v));
    }
    static void store(std::byte* p, const Pairs& codes) noexcept {
        vst1q_u8(reinterpret_cast<std::uint8_t*>(p), codes.first);
        vst1q_u8(reinterpret_cast<std::uint8_t*>(p) + 16, codes.last);
    }

  private:
    static inline __attribute__((always_inline)) Pairs load(const std::byte* p) noexcept {
        return {neon::load_bytes(p), neon::load_bytes(p + 16)};
    }
};

// Of four tokens (channels): high and low part in turn.
struct Sum {
    int32x4_t first, last;
};

template <int kRows, int kVectors>
using Sums = Sum[kRows][kVectors];

template <int kRows, int kVectors>
inline __attribute__((always_inline)) void start_sums(Sums<kRows, kVectors>& sum, const Pass& pass) noexcept {
    unroll<kRows>([&](auto r) __attribute__((always_inline)) {
        const int32x4_t start = vzip1q_s32(vdupq_n_s32(0), vdupq_n_s32(pass.start[r.value]));
        unroll<kVectors>([&](auto v) __attribute__((always_inline)) {
            sum[r.value][v.value] = {start, start};
        });
    });
}

// integers: [4 rows][high x 8, low x 8].
template <int kRows, int kVectors>
inline __attribute__((always_inline)) void add_products(Sums<kRows, kVectors>& sum,
                                                        const Pairs (&codes)[kVectors],
                                                        const std::byte* integers) noexcept {
    const auto* q = reinterpret_cast<const std::int8_t*>(integers);
    unroll<kRows>([&](auto row) __attribute__((always_inline)) {
        constexpr int r = decltype(row)::value;
        const int8x16_t parts = vld1q_s8(q + 16 * r);
        unroll<kVectors>([&](auto v) __attribute__((always_inline)) {
            Sum& s = sum[r][v.value];
            s.first = vusmmlaq_s32(s.first, codes[v.value].first, parts);
            s.last = vusmmlaq_s32(s.last, codes[v.value].last, parts);
        });
    });
}

inline __attribute__((always_inline)) int32x4_t whole(const Sum& sum) noexcept {
    static constexpr std::int32_t kShift[4] = {8, 0, 8, 0};
    const int32x4_t shift = vld1q_s32(kShift);
    return vpaddq_s32(vshlq_s32(sum.first, shift), vshlq_s32(sum.last, shift));
}

template <int kRows>
constexpr int kTileVectors = kRows <= 2 ? 4 : 2;

struct Set {
    using Lanes = neon::Lanes;
    template <int kBits>
    using Packed = i8mm::Packed<kBits>;
    using Unpacked = i8mm::Unpacked;
    static constexpr int kValuesApart = 16;
    static constexpr int kWordsBytes = 64;
    static constexpr int kQkTiles = 4;
    static constexpr int kPvTilesPer16 = 1;
    static constexpr int start_shift(int bits) { return bits - 1; }
    static constexpr auto fp16_to_fp32 = neon::fp16_to_fp32;

    // Eight of each row: [4 rows][high x 8, low x 8]. The low byte is signed, so the high part is the high
    // byte of the integer + 128.
    template <int kRows>
    static void put_integers(std::byte* out, const int16x8_t (&words)[kRows]) noexcept {
        unroll<kRows>([&](auto r) __attribute__((always_inline)) {
            const int16x8_t x = words[r.value];
            vst1q_s8(reinterpret_cast<std::int8_t*>(out) + 16 * r.value,
                     vmovn_high_s16(vrshrn_n_s16(x, 8), x));
        });
    }

    template <typename Codes, int kFirst, int kRows, int kVectors, bool kWhole>
    static inline __attribute__((always_inline)) void qk_step(const std::byte* codes, const BlockLayout& l,
                                                              int unit, int j, const std::byte* integers,
                                                              Sums<kRows, kVectors>& sum) noexcept {
        Pairs x[kVectors];
        unroll<kVectors>([&](auto v) __attribute__((always_inline)) {
            x[v.value] = Codes::template keys<kFirst + decltype(v)::value, kWhole>(codes, l, unit, j);
        });
        add_products<kRows, kVectors>(sum, x, integers);
    }

    template <typename Codes, int kFirst, int kRows>
    static inline __attribute__((always_inline)) void qk_tile(const std::byte* codes, const BlockLayout& l,
                                                              const Pass& pass, int j, float* scores,
                                                              bool add) noexcept {
        constexpr int kVectors = kTileVectors<kRows>;
        Sums<kRows, kVectors> sum;
        start_sums<kRows, kVectors>(sum, pass);
        const std::byte* q = pass.integers;
        int unit = 0;
        for (; unit < l.dim / 8; ++unit, q += 64) {
            qk_step<Codes, kFirst, kRows, kVectors, true>(codes, l, unit, j, q, sum);
        }
        if (l.dim % 8 != 0) qk_step<Codes, kFirst, kRows, kVectors, false>(codes, l, unit, j, q, sum);
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
            for (int half = 0; half < kPage / 32; ++half) {
                unroll<4>([&](auto field) __attribute__((always_inline)) {
                    constexpr int kG = decltype(field)::value;
                    Pairs x[kVectors];
                    unroll<kVectors>([&](auto v) __attribute__((always_inline)) {
                        x[v.value] = Codes::template values<kG>(codes, l, half, v0 + v.value);
                    });
                    add_products<kRows, kVectors>(sum, x, p);
                    p += 64;
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
        const auto unpack = [&](int unit, auto whole_unit) {
            for (int j = 0; j < 4; ++j) {
                unroll<4>([&](auto field) __attribute__((always_inline)) {
                    constexpr int kJ = decltype(field)::value;
                    Unpacked::store(out + Unpacked::key_at(l, kJ, unit, j),
                                    Packed<kBits>::template keys<kJ, decltype(whole_unit)::value != 0>(
                                        block, l, unit, j));
                });
            }
        };
        for (int unit = 0; unit < l.dim / 8; ++unit) unpack(unit, shared::Int<1>{});
        if (l.dim % 8 != 0) unpack(l.dim / 8, shared::Int<0>{});
    }

    template <int kBits>
    static void unpack_values(const std::byte* block, const BlockLayout& l, std::byte* out) noexcept {
        for (int half = 0; half < kPage / 32; ++half) {
            for (int v = 0; v < l.dim / 4; ++v) {
                unroll<4>([&](auto field) __attribute__((always_inline)) {
                    constexpr int kG = decltype(field)::value;
                    Unpacked::store(out + Unpacked::value_at(half, kG, v),
                                    Packed<kBits>::template values<kG>(block, l, half, v));
                });
            }
        }
    }
};

}  // namespace
}  // namespace mixed_kv::kernels::i8mm
