#pragma once

#include "formats/block_layout.h"
#include "kernels/avx512/simd.h"

// Folds a block's scales and zero points into query (or probability) rows: the integers that vpdpbusd
// multiplies codes with, and the float constant beside them. The integers are those of the scalar kernels.
namespace mixed_kv::kernels::avx512 {
namespace {

using formats::BlockLayout;

// The integers of one pass over the page: q * scale (or p * scale), or what the first pass left out of it.
struct Pass {
    // [n_rows][length / 4][2][4] bytes: of four neighbours first the high, then the low bytes of the 16-bit
    // integer q = 256 high + low, both in -128..127.
    std::byte* parts;
    float step[kMaxDecodeRows], constant[kMaxDecodeRows];
    float weight[kMaxDecodeRows];        // of the channels' means, values only
    std::int32_t start[kMaxDecodeRows];  // -centre * sum of the integers
};

// Scratch: [scale float][what a code of the centre adds float][one row scaled float][integers of two passes].
struct Scratch {
    float *scale, *offset, *scaled;
    Pass first, rest;
    bool has_rest[kMaxDecodeRows];  // rows whose residual is worth a second pass; the others' is zero
};

constexpr int padded(int n) { return formats::round_up(n, 16); }

inline Scratch make_scratch(std::byte* memory, int length) noexcept {
    auto* floats = reinterpret_cast<float*>(memory);
    Scratch s;
    s.scale = floats;
    s.offset = floats + length;
    s.scaled = floats + 2 * length;
    s.first.parts = memory + std::size_t(length) * 3 * sizeof(float);
    s.rest.parts = s.first.parts + std::ptrdiff_t(2) * kMaxDecodeRows * length;
    return s;
}

struct Rounded {
    float step;
    std::int32_t sum;  // of the integers
    float largest;     // magnitude of what rounding left in x; 0 unless kTakeResidual
};

// Rounds the length values of x to 16-bit integers. kTakeResidual: x -= integer * step, product and
// difference rounded one after the other as in the scalar kernels. The scalar kernels clamp as well, which
// matters only for NaN; the row's constant carries it to the result.
template <bool kTakeResidual>
inline Rounded round_row(float* x, int length, float largest, int limit, std::byte* parts) noexcept {
    const float bound = static_cast<float>(limit);
    const bool zero = !(largest > 1e-30f);
    const float step = zero ? 0.0f : largest / bound;
    const __m512 inv = _mm512_set1_ps(zero ? 0.0f : bound / largest);
    const __m512 unit = _mm512_set1_ps(step);
    // Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits of the mantissa. With 128 more,
    // byte 1 is the high part, since the low one is within -128..127, and byte 0 the low part + 128.
    const __m512 magic = _mm512_set1_ps(12582912.0f + 128.0f);
    constexpr std::uint32_t kMagicBits = 0x4b400000u + 128u;
    const __m512i flip = _mm512_set1_epi32(0x80);
    const __m512i order = _mm512_set4_epi32(0, 0, 0x0c080400, 0x0d090501);  // bytes 1 of four lanes, bytes 0
    const __m512i even_words = _mm512_setr_epi64(0, 2, 4, 6, 0, 2, 4, 6);
    __m512i sums = _mm512_setzero_si512();
    __m512 left = _mm512_setzero_ps();
    for (int c = 0; c < length; c += 16) {
        const __m512 value = _mm512_loadu_ps(x + c);
        const __m512 rounded = _mm512_add_ps(_mm512_mul_ps(value, inv), magic);
        const __m512i bits = _mm512_castps_si512(rounded);
        sums = _mm512_add_epi32(sums, bits);
        const __m512i bytes = _mm512_shuffle_epi8(_mm512_xor_si512(bits, flip), order);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(parts + std::ptrdiff_t(2) * c),
                            _mm512_castsi512_si256(_mm512_permutexvar_epi64(even_words, bytes)));
        if constexpr (kTakeResidual) {
            const __m512 rest = _mm512_sub_ps(value, _mm512_mul_ps(_mm512_sub_ps(rounded, magic), unit));
            _mm512_storeu_ps(x + c, rest);
            left = _mm512_max_ps(_mm512_abs_ps(rest), left);
        }
    }
    const auto total = static_cast<std::uint32_t>(horizontal_sum(sums)) - kMagicBits * unsigned(length);
    return {step, static_cast<std::int32_t>(total), kTakeResidual ? horizontal_max(left) : 0.0f};
}

// Folds the block's scales and zero points into n_rows rows of x; length is a multiple of 16. needs_rest(r,
// step) says whether a row's residual is wanted. Returns whether any is.
template <int kBits, bool kIsKey, typename NeedsRest>
inline bool fold(const std::byte* block, const std::byte* next, const BlockLayout& l, const float* x,
                 std::ptrdiff_t stride, int n_rows, int length, int limit, Scratch& s,
                 NeedsRest&& needs_rest) noexcept {
    constexpr int centre = formats::code_centre(kBits);
    const std::byte* ahead = next != nullptr ? next : block;
    for (std::size_t at = 0; at < l.byte_plane; at += 64) {
        prefetch(ahead + at);  // the next block's scales and zero points
    }
    for (int c = 0; c < length; c += 16) {
        const __m512 scale = l.scale_form == formats::ScaleForm::byte
                                 ? load_byte_scales(block + c)
                                 : load_halves(block + std::size_t(c) * 2);
        _mm512_storeu_ps(s.scale + c, scale);
        if constexpr (kIsKey) {
            const __m512 zero = load_halves(block + l.offsets + std::size_t(c) * 2);
            _mm512_storeu_ps(s.offset + c, _mm512_fmadd_ps(scale, _mm512_set1_ps(centre), zero));
        } else {
            _mm512_storeu_ps(s.offset + c, _mm512_mul_ps(scale, _mm512_set1_ps(formats::kCentreAboveMiddle)));
        }
    }
    bool any = false;
    for (int r = 0; r < n_rows; ++r) {
        const float* row = x + r * stride;
        __m512 largest = _mm512_setzero_ps(), constant = _mm512_setzero_ps(), weight = _mm512_setzero_ps();
        for (int c = 0; c < length; c += 16) {
            const __m512 value = _mm512_loadu_ps(row + c);
            const __m512 scaled = _mm512_mul_ps(value, _mm512_loadu_ps(s.scale + c));
            _mm512_storeu_ps(s.scaled + c, scaled);
            largest = _mm512_max_ps(_mm512_abs_ps(scaled), largest);
            constant = _mm512_fmadd_ps(value, _mm512_loadu_ps(s.offset + c), constant);
            if constexpr (!kIsKey) weight = _mm512_add_ps(weight, value);
        }
        const auto start = [](std::int32_t sum) {
            return static_cast<std::int32_t>(-static_cast<std::uint32_t>(centre) *
                                             static_cast<std::uint32_t>(sum));
        };
        const float row_largest = horizontal_max(largest);
        const std::ptrdiff_t at = std::ptrdiff_t(2) * r * length;
        s.first.constant[r] = horizontal_sum(constant);
        s.rest.constant[r] = 0.0f;
        s.first.weight[r] = horizontal_sum(weight);
        s.rest.weight[r] = 0.0f;
        s.has_rest[r] = needs_rest(r, row_largest > 1e-30f ? row_largest / static_cast<float>(limit) : 0.0f);
        if (s.has_rest[r]) {
            any = true;
            const Rounded first = round_row<true>(s.scaled, length, row_largest, limit, s.first.parts + at);
            const Rounded rest = round_row<false>(s.scaled, length, first.largest, limit, s.rest.parts + at);
            s.first.step[r] = first.step, s.first.start[r] = start(first.sum);
            s.rest.step[r] = rest.step, s.rest.start[r] = start(rest.sum);
        } else {
            const Rounded first = round_row<false>(s.scaled, length, row_largest, limit, s.first.parts + at);
            s.first.step[r] = first.step, s.first.start[r] = start(first.sum);
            s.rest.step[r] = 0.0f, s.rest.start[r] = 0;
            std::memset(s.rest.parts + at, 0, std::size_t(length) * 2);
        }
    }
    return any;
}

inline bool any_rest(const Scratch& s, int r, int n) noexcept {
    for (int i = r; i < r + n; ++i) {
        if (s.has_rest[i]) {
            return true;
        }
    }
    return false;
}

}  // namespace
}  // namespace mixed_kv::kernels::avx512
