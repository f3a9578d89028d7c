#pragma once

#include "kernels/amx/tiles.h"
#include "kernels/avx512/lanes.h"

// Floats as sums of two bfloat16 numbers, and their products on tiles (see fp16_pages.cpp).
namespace mixed_kv::kernels::amx {
namespace {

using avx512::unroll;

// The two parts of 32 numbers, or of a whole operand.
struct Halves {
    __m512i high, low;
};
struct Operand {
    std::byte *high, *low;
};

// x rounded to 8 bits, a float still; halves round away from zero. A NaN may become anything, its rest stays
// NaN.
inline __m512 round_to_8_bits(__m512 x) noexcept {
    const __m512i bits = _mm512_add_epi32(_mm512_castps_si512(x), _mm512_set1_epi32(0x8000));
    return _mm512_castsi512_ps(_mm512_and_si512(bits, _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
}

// 32 floats to bfloat16, x0's first.
inline __m512i to_bf16(__m512 x0, __m512 x1) noexcept {
    return __builtin_bit_cast(__m512i, _mm512_cvtne2ps_pbh(x1, x0));
}

inline Halves split(__m512 x0, __m512 x1) noexcept {
    const __m512 high0 = round_to_8_bits(x0), high1 = round_to_8_bits(x1);
    return {to_bf16(high0, high1), to_bf16(_mm512_sub_ps(x0, high0), _mm512_sub_ps(x1, high1))};
}

// Lane by lane x0's and x1's beside each other. exact: the numbers have 16 bits at most, so their low parts
// are bfloat16 already.
enum class Low { exact, rounded };
template <Low kLow>
inline Halves split_interleaved(__m512 x0, __m512 x1) noexcept {
    const __m512 high0 = round_to_8_bits(x0), high1 = round_to_8_bits(x1);
    const auto rest = [](__m512 x, __m512 high) {
        const __m512 low = _mm512_sub_ps(x, high);
        return kLow == Low::exact ? low : round_to_8_bits(low);
    };
    const auto interleave = [](__m512 even, __m512 odd) {
        return _mm512_or_si512(_mm512_srli_epi32(_mm512_castps_si512(even), 16), _mm512_castps_si512(odd));
    };
    return {interleave(high0, high1), interleave(rest(x0, high0), rest(x1, high1))};
}

// Whether any number seen was infinite or NaN.
class NotFinite {
  public:
    void see(__m512 x) noexcept { sum_ = _mm512_fmadd_ps(x, _mm512_setzero_ps(), sum_); }
    bool any() const noexcept { return _mm512_cmp_ps_mask(sum_, sum_, _CMP_UNORD_Q) != 0; }

  private:
    __m512 sum_ = _mm512_setzero_ps();
};

enum class Start { zero, sums };

// to[16][n_tiles * 16] = or += rows * page, n_tiles <= 4, over n_steps of 32 summed numbers. rows:
// [16][kRowLength, or n_steps * 32 where it is 0]; page: rows of tiles row_bytes apart. Four independent sums
// are what the latency of a product asks for.
template <Start kStart, int kRowLength = 0>
inline void multiply(const Operand& rows, int n_steps, const Operand& page, std::ptrdiff_t row_bytes,
                     int n_tiles, float* to, std::ptrdiff_t to_bytes) noexcept {
    const std::ptrdiff_t a_bytes = kRowLength != 0 ? kRowLength * 2 : std::ptrdiff_t(n_steps) * kTileBytes;
    const auto tiles = [&](auto count) {
        constexpr int kN = decltype(count)::value;
        unroll<kN>([&](auto j) {
            constexpr int kJ = decltype(j)::value;
            if constexpr (kStart == Start::zero) {
                zero<kJ>();
            } else {
                load<kJ>(to + kJ * 16, to_bytes);
            }
        });
        for (int k = 0; k < n_steps; ++k) {
            const std::ptrdiff_t at = k * kTileRows * row_bytes;
            load<4>(rows.high + k * kTileBytes, a_bytes);
            load<5>(rows.low + k * kTileBytes, a_bytes);
            unroll<kN>([&](auto j) {
                constexpr int kJ = decltype(j)::value;
                load<6>(page.high + at + kJ * kTileBytes, row_bytes);
                multiply_bf16<kJ, 4, 6>();
                multiply_bf16<kJ, 5, 6>();
            });
            unroll<kN>([&](auto j) {
                constexpr int kJ = decltype(j)::value;
                load<7>(page.low + at + kJ * kTileBytes, row_bytes);
                multiply_bf16<kJ, 4, 7>();
            });
        }
        unroll<kN>([&](auto j) { store<decltype(j)::value>(to + j.value * 16, to_bytes); });
    };
    switch (n_tiles) {
        case 4:
            tiles(avx2::Int<4>{});
            break;
        case 3:
            tiles(avx2::Int<3>{});
            break;
        case 2:
            tiles(avx2::Int<2>{});
            break;
        default:
            tiles(avx2::Int<1>{});
            break;
    }
}

}  // namespace
}  // namespace mixed_kv::kernels::amx
