#pragma once

#include "formats/block_layout.h"
#include "kernels/amx/tiles.h"
#include "kernels/avx512/lanes.h"

// Exact integer sums of codes times 16-bit integers, 16 query rows at a time. The integers are those of the
// scalar kernels: q * scale (or p * scale) rounded, 256 high + low with two signed bytes. Each part of 16
// rows is a first operand of tile products, the page's centred codes, unpacked once per call, are the second.
namespace mixed_kv::kernels::amx {
namespace {

using avx512::unroll;
using formats::BlockLayout;

// Summed channels or tokens of one tile product: 64 bytes of a row.
constexpr int kStep = 64;
constexpr int whole_steps(int n) { return formats::round_up(n, kStep); }

// 64 codes less code_centre, as signed bytes.
template <int kBits>
inline __m512i centred(__m512i codes) noexcept {
    const __m512i centre = _mm512_set1_epi8(static_cast<char>(formats::code_centre(kBits)));
    return kBits == 8 ? _mm512_xor_si512(codes, centre) : _mm512_sub_epi8(codes, centre);
}

// The integers of one pass over the page.
struct Pass {
    std::byte *high, *low;  // [16][whole_steps(length)], 0 beyond length
    float step[kTileRows];
};

// Memory of a call: [scale float][what a code of the centre adds float][one row float][parts of two passes]
// [sums][codes].
struct Integers {
    float *scale, *offset, *row;  // [whole_steps(length)]
    Pass first, rest;
    std::int32_t *high, *low;  // sums [16][64]
    std::byte* codes;
    float constant[kTileRows], weight[kTileRows];  // weight: sum of p, values only
};

constexpr std::size_t integers_bytes(int length, std::size_t code_bytes) {
    const auto n = static_cast<std::size_t>(whole_steps(length));
    return 3 * n * sizeof(float) + 4 * kTileRows * n + 2 * kTileRows * kPage * sizeof(std::int32_t) +
           code_bytes;
}

inline void place(Integers& s, std::byte* memory, int length) noexcept {
    const std::ptrdiff_t n = whole_steps(length);
    s.scale = reinterpret_cast<float*>(memory);
    s.offset = s.scale + n;
    s.row = s.offset + n;
    std::byte* at = memory + 3 * n * std::ptrdiff_t(sizeof(float));
    std::byte** const parts[] = {&s.first.high, &s.first.low, &s.rest.high, &s.rest.low};
    for (std::byte** part : parts) {
        *part = at;
        at += n * kTileRows;
    }
    s.high = reinterpret_cast<std::int32_t*>(at);
    s.low = s.high + kTileRows * kPage;
    s.codes = reinterpret_cast<std::byte*>(s.low + kTileRows * kPage);
}

// Scales and what the centre stands for as float, once per page. length is a multiple of 16.
template <int kBits, bool kIsKey>
inline void load_parameters(const std::byte* block, const std::byte* next, const BlockLayout& l, int length,
                            Integers& s) noexcept {
    constexpr int centre = formats::code_centre(kBits);
    const std::byte* ahead = next != nullptr ? next : block;
    for (std::size_t at = 0; at < l.byte_plane; at += 64) {
        avx512::prefetch(ahead + at);  // the next block's scales and zero points
    }
    for (int c = 0; c < length; c += 16) {
        const __m512 scale = l.scale_form == formats::ScaleForm::byte
                                 ? avx512::load_byte_scales(block + c)
                                 : avx512::load_halves(block + std::size_t(c) * 2);
        _mm512_storeu_ps(s.scale + c, scale);
        if constexpr (kIsKey) {
            const __m512 zero = avx512::load_halves(block + l.offsets + std::size_t(c) * 2);
            _mm512_storeu_ps(s.offset + c, _mm512_fmadd_ps(scale, _mm512_set1_ps(centre), zero));
        } else {
            _mm512_storeu_ps(s.offset + c, _mm512_mul_ps(scale, _mm512_set1_ps(formats::kCentreAboveMiddle)));
        }
    }
}

// Rounds a row times inv to integers and stores their high and low bytes. load(c) gives 16 values from c on,
// visit(c, values, integers) sees them; neither is called from length on. NaN becomes the smallest integer,
// which matters to nobody: the row's constant carries it to the result.
template <typename Load, typename Visit>
inline void round_row(int length, float inv, std::byte* high, std::byte* low, Load&& load,
                      Visit&& visit) noexcept {
    const __m512 factor = _mm512_set1_ps(inv);
    // Packing works within 128-bit parts: part p, lane j then holds channels 16 j + 4 p of the 64.
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const __m512i half = _mm512_set1_epi16(128), low_byte = _mm512_set1_epi16(0xff);
    const auto block = [&](int c, auto whole) {
        __m512i x[4];
        unroll<4>([&](auto i) {
            const int at = c + i.value * 16;
            if (decltype(whole)::value != 0 || at < length) {
                const __m512 value = load(at);
                x[i.value] = _mm512_cvtps_epi32(_mm512_mul_ps(value, factor));
                visit(at, value, x[i.value]);
            } else {
                x[i.value] = _mm512_setzero_si512();
            }
        });
        const __m512i first = _mm512_packs_epi32(x[0], x[1]), second = _mm512_packs_epi32(x[2], x[3]);
        const __m512i high_bytes = _mm512_packs_epi16(_mm512_srai_epi16(_mm512_add_epi16(first, half), 8),
                                                      _mm512_srai_epi16(_mm512_add_epi16(second, half), 8));
        const __m512i low_bytes =
            _mm512_packus_epi16(_mm512_and_si512(first, low_byte), _mm512_and_si512(second, low_byte));
        _mm512_storeu_si512(high + c, _mm512_permutexvar_epi32(order, high_bytes));
        _mm512_storeu_si512(low + c, _mm512_permutexvar_epi32(order, low_bytes));
    };
    int c = 0;
    for (; c + kStep <= length; c += kStep) block(c, avx2::Int<1>{});
    if (c < length) block(c, avx2::Int<0>{});
}

struct Rounding {
    __m512 step, inv;  // one row per lane
};

inline Rounding rounding(__m512 largest, int limit) noexcept {
    const __m512 bound = _mm512_set1_ps(static_cast<float>(limit));
    const __mmask16 some = _mm512_cmp_ps_mask(largest, _mm512_set1_ps(1e-30f), _CMP_GT_OQ);
    return {_mm512_maskz_mov_ps(some, _mm512_div_ps(largest, bound)),
            _mm512_maskz_mov_ps(some, _mm512_div_ps(bound, largest))};
}

// Folds the page's scales into n <= 16 rows of x; length is a multiple of 16. needs_rest(step, peak), one row
// per lane, says whose residual is wanted, peak being the row's largest x (values only). Returns whether any
// is; rest then holds zeros for the others.
template <bool kIsKey, typename NeedsRest>
inline bool fold(const float* x, std::ptrdiff_t stride, int n, int length, int limit, Integers& s,
                 NeedsRest&& needs_rest) noexcept {
    __m512 largest[16], constant[16], weight[16], peak[16];
    for (int r = 0; r < n; ++r) {
        const float* row = x + r * stride;
        __m512 row_largest = _mm512_setzero_ps(), row_constant = _mm512_setzero_ps();
        __m512 row_weight = _mm512_setzero_ps(), row_peak = _mm512_setzero_ps();
        for (int c = 0; c < length; c += 16) {
            const __m512 value = _mm512_loadu_ps(row + c);
            const __m512 scaled = _mm512_mul_ps(value, _mm512_loadu_ps(s.scale + c));
            row_largest = _mm512_max_ps(_mm512_abs_ps(scaled), row_largest);  // skips NaN
            row_constant = _mm512_fmadd_ps(value, _mm512_loadu_ps(s.offset + c), row_constant);
            if constexpr (!kIsKey) {
                row_weight = _mm512_add_ps(row_weight, value);
                row_peak = _mm512_max_ps(value, row_peak);
            }
        }
        largest[r] = row_largest, constant[r] = row_constant, weight[r] = row_weight, peak[r] = row_peak;
    }
    for (int r = n; r < kTileRows; ++r) {
        largest[r] = constant[r] = weight[r] = peak[r] = _mm512_setzero_ps();
    }
    _mm512_storeu_ps(s.constant, avx512::sum_each(constant));
    __m512 peaks = _mm512_setzero_ps();
    if constexpr (!kIsKey) {
        _mm512_storeu_ps(s.weight, avx512::sum_each(weight));
        peaks = avx512::max_each(peak);
    }
    const Rounding first = rounding(avx512::max_each(largest), limit);
    _mm512_storeu_ps(s.first.step, first.step);
    float inv[kTileRows];
    _mm512_storeu_ps(inv, first.inv);
    const unsigned wanted = needs_rest(first.step, peaks) & unsigned((1u << n) - 1u);

    const std::ptrdiff_t row_bytes = whole_steps(length);
    for (int r = 0; r < n; ++r) {
        const float* row = x + r * stride;
        const auto scaled = [&](int c) {
            return _mm512_mul_ps(_mm512_loadu_ps(row + c), _mm512_loadu_ps(s.scale + c));
        };
        const std::ptrdiff_t at = r * row_bytes;
        if ((wanted >> r & 1) == 0) {
            round_row(length, inv[r], s.first.high + at, s.first.low + at, scaled,
                      [](int, __m512, __m512i) {});
            continue;
        }
        // The residual, product and difference rounded one after the other as in the scalar kernels.
        const __m512 unit = _mm512_set1_ps(s.first.step[r]);
        __m512 left = _mm512_setzero_ps();
        round_row(length, inv[r], s.first.high + at, s.first.low + at, scaled,
                  [&](int c, __m512 value, __m512i integers) {
                      const __m512 rest =
                          _mm512_sub_ps(value, _mm512_mul_ps(_mm512_cvtepi32_ps(integers), unit));
                      _mm512_storeu_ps(s.row + c, rest);
                      left = _mm512_max_ps(_mm512_abs_ps(rest), left);
                  });
        const float rest_largest = avx512::horizontal_max(left), bound = static_cast<float>(limit);
        const bool some = rest_largest > 1e-30f;
        s.rest.step[r] = some ? rest_largest / bound : 0.0f;
        round_row(
            length, some ? bound / rest_largest : 0.0f, s.rest.high + at, s.rest.low + at,
            [&](int c) { return _mm512_loadu_ps(s.row + c); }, [](int, __m512, __m512i) {});
    }
    if (wanted == 0) return false;
    for (int r = 0; r < n; ++r) {
        if ((wanted >> r & 1) != 0) continue;
        s.rest.step[r] = 0.0f;
        for (std::ptrdiff_t c = 0; c < row_bytes; c += 64) {
            _mm512_storeu_si512(s.rest.high + r * row_bytes + c, _mm512_setzero_si512());
            _mm512_storeu_si512(s.rest.low + r * row_bytes + c, _mm512_setzero_si512());
        }
    }
    return true;
}

// Sums of a pass for n_tiles <= 4 tiles of 16 tokens or channels: s.high and s.low [16][64]. codes: the first
// of n_steps * 16 rows of tiles, row_bytes apart.
inline void multiply(const Pass& pass, int n_steps, const std::byte* codes, std::ptrdiff_t row_bytes,
                     int n_tiles, Integers& s) noexcept {
    constexpr std::ptrdiff_t kSumBytes = kPage * std::ptrdiff_t(sizeof(std::int32_t));
    const std::ptrdiff_t part_bytes = std::ptrdiff_t(n_steps) * kStep;
    int j = 0;
    for (; j + 2 <= n_tiles; j += 2) {
        zero<0>(), zero<1>(), zero<2>(), zero<3>();
        for (int k = 0; k < n_steps; ++k) {
            const std::byte* b = codes + k * kTileRows * row_bytes + j * kTileBytes;
            load<4>(pass.high + k * kStep, part_bytes);
            load<6>(b, row_bytes);
            multiply_int8<0, 4, 6>();
            load<5>(pass.low + k * kStep, part_bytes);
            multiply_int8<1, 5, 6>();
            load<7>(b + kTileBytes, row_bytes);
            multiply_int8<2, 4, 7>();
            multiply_int8<3, 5, 7>();
        }
        store<0>(s.high + j * 16, kSumBytes);
        store<1>(s.low + j * 16, kSumBytes);
        store<2>(s.high + j * 16 + 16, kSumBytes);
        store<3>(s.low + j * 16 + 16, kSumBytes);
    }
    if (j < n_tiles) {
        zero<0>(), zero<1>();
        for (int k = 0; k < n_steps; ++k) {
            load<4>(pass.high + k * kStep, part_bytes);
            load<6>(codes + k * kTileRows * row_bytes + j * kTileBytes, row_bytes);
            multiply_int8<0, 4, 6>();
            load<5>(pass.low + k * kStep, part_bytes);
            multiply_int8<1, 5, 6>();
        }
        store<0>(s.high + j * 16, kSumBytes);
        store<1>(s.low + j * 16, kSumBytes);
    }
}

// 16 sums of row r from column `column` on, both parts as one, as float.
inline __m512 sums_of(const Integers& s, int r, int column) noexcept {
    const __m512i high = avx512::load_i(s.high + r * kPage + column),
                  low = avx512::load_i(s.low + r * kPage + column);
    return _mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_slli_epi32(high, 8), low));
}

}  // namespace
}  // namespace mixed_kv::kernels::amx
