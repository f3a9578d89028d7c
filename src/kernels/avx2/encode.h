#pragma once

#include <limits>

#include "formats/codec.h"
#include "kernels/avx2/avx2.h"
#include "kernels/avx2/codes.h"

// What the encoders of keys and values share. They write the bytes of src/formats/codec.cpp. Eight scales are
// chosen at a time, one per lane: eight channels of keys (the sums run over tokens) or eight tokens of values
// (the sums run over channels). Every lane performs the scalar codec's float operations in its order, so the
// results are equal bit for bit; hence no FMA.
namespace mixed_kv::kernels::avx2 {
namespace {

using formats::BlockLayout;
using formats::ScaleForm;

// Largest magnitude bits (binary16 without sign) of the counted rows; 0x7c00 and above: not finite.
inline std::uint16_t largest_magnitude(const EncodeArgs& a) noexcept {
    const __m256i magnitude = _mm256_set1_epi16(0x7fff);
    __m256i largest = _mm256_setzero_si256();
    std::uint16_t rest = 0;
    for (int t = 0; t < kPage; ++t) {
        if ((a.counted >> t & 1) == 0) {
            continue;
        }
        const std::uint16_t* row = a.rows + t * a.row_stride;
        int c = 0;
        for (; c + 16 <= a.head_dim; c += 16) {
            largest = _mm256_max_epu16(largest, _mm256_and_si256(load_i(row + c), magnitude));
        }
        for (; c < a.head_dim; ++c) {
            const auto m = static_cast<std::uint16_t>(row[c] & 0x7fff);
            rest = m > rest ? m : rest;
        }
    }
    alignas(32) std::uint16_t lanes[16];
    _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), largest);
    for (const std::uint16_t m : lanes) {
        rest = m > rest ? m : rest;
    }
    return rest;
}

// Eight scales and zero points, as stored and as floats; a code is (x - zero) * inverse + shift, rounded.
struct Affine8 {
    __m128i scale16, zero16;
    __m256 zero, inverse, shift;
};

inline Affine8 make_affine(__m128i scale16, __m128i zero16, float shift) noexcept {
    const __m256 scale = _mm256_cvtph_ps(scale16);
    const __m256 positive = _mm256_cmp_ps(scale, _mm256_setzero_ps(), _CMP_GT_OQ);
    return {scale16, zero16, _mm256_cvtph_ps(zero16),
            _mm256_and_ps(_mm256_div_ps(_mm256_set1_ps(1.0f), scale), positive), _mm256_set1_ps(shift)};
}

// formats::coarse_scale() of eight.
inline __m128i coarse_scale(__m128i scale16) noexcept {
    const __m128i up = _mm_andnot_si128(_mm_set1_epi16(63), _mm_add_epi16(scale16, _mm_set1_epi16(63)));
    return _mm_blendv_epi8(scale16, up, _mm_cmpgt_epi16(scale16, _mm_set1_epi16(0x03ff)));
}

// formats::byte_scale() of eight.
inline __m128i byte_scale(__m128i scale16) noexcept {
    return _mm_andnot_si128(_mm_set1_epi16(127), _mm_add_epi16(scale16, _mm_set1_epi16(127)));
}

// The position on the scale of codes.
inline __m256 position(__m256 x, const Affine8& a) noexcept {
    return _mm256_add_ps(_mm256_mul_ps(_mm256_sub_ps(x, a.zero), a.inverse), a.shift);
}

// Clamped; operand order matters for NaN and equals the definition's.
inline __m256 clamp_code(__m256 t, __m256 max_code) noexcept {
    return _mm256_min_ps(_mm256_max_ps(t, _mm256_setzero_ps()), max_code);
}

// Squared errors, in units of the squared step, of kCount candidates at once: the passes over x are what
// costs.
template <int kCount>
inline void candidate_errors(const float* x, const std::uint8_t* index, int n, __m256 max_code,
                             const Affine8* candidates, __m256* errors) noexcept {
    __m256 error[kCount];
    Affine8 affine[kCount];
    for (int k = 0; k < kCount; ++k) {
        error[k] = _mm256_setzero_ps();
        affine[k] = candidates[k];
    }
    for (int i = 0; i < n; ++i) {
        const __m256 v = _mm256_loadu_ps(x + (index != nullptr ? index[i] : i) * 8);
        for (int k = 0; k < kCount; ++k) {
            const __m256 t = position(v, affine[k]);
            const __m256 code =
                _mm256_round_ps(clamp_code(t, max_code), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
            const __m256 e = _mm256_sub_ps(t, code);
            error[k] = _mm256_add_ps(error[k], _mm256_mul_ps(e, e));
        }
    }
    for (int k = 0; k < kCount; ++k) {
        errors[k] = error[k];
    }
}

// candidate_of() of the scalar codec for eight lanes.
template <int kBits, bool kSymmetric, ScaleForm kForm>
inline Affine8 candidate_of(__m256 middle, __m256 reach) noexcept {
    constexpr float kMaxCode = static_cast<float>((1 << kBits) - 1);
    constexpr float kShift = kSymmetric ? formats::middle_code(kBits) : 0.0f;
    const __m128i scale16 = to_halves(_mm256_mul_ps(reach, _mm256_set1_ps(2.0f / kMaxCode)));
    if constexpr (kSymmetric) {
        return make_affine(kForm == ScaleForm::byte ? byte_scale(scale16) : coarse_scale(scale16),
                           _mm_setzero_si128(), kShift);
    } else if constexpr (kForm == ScaleForm::half) {
        return make_affine(scale16, to_halves(_mm256_sub_ps(middle, reach)), kShift);
    } else {
        const __m128i rounded = byte_scale(scale16);
        const __m256 below = _mm256_mul_ps(_mm256_cvtph_ps(rounded), _mm256_set1_ps(kMaxCode * 0.5f));
        const __m256 zero = _mm256_max_ps(_mm256_sub_ps(middle, below), _mm256_set1_ps(formats::kLowestZero));
        return make_affine(rounded, to_halves(zero), kShift);
    }
}

// choose_affine() of the scalar codec for eight lanes of x[i][8]; index lists the n values to use, nullptr:
// all.
template <int kBits, bool kSymmetric, ScaleForm kForm>
inline Affine8 choose_affine(const float* x, const std::uint8_t* index, int n) noexcept {
    constexpr formats::ClipFactors clips = formats::clip_factors(!kSymmetric, kBits, kForm);
    constexpr float kShift = kSymmetric ? formats::middle_code(kBits) : 0.0f;
    const __m256 infinity = _mm256_set1_ps(std::numeric_limits<float>::infinity());
    if (n == 0) {
        return make_affine(_mm_setzero_si128(), _mm_setzero_si128(), kShift);
    }
    __m256 lo = infinity, hi = _mm256_xor_ps(infinity, _mm256_set1_ps(-0.0f));
    for (int i = 0; i < n; ++i) {
        const __m256 v = _mm256_loadu_ps(x + (index != nullptr ? index[i] : i) * 8);
        lo = _mm256_min_ps(v, lo);
        hi = _mm256_max_ps(v, hi);
    }
    if constexpr (kSymmetric) {
        const __m256 below = _mm256_xor_ps(lo, _mm256_set1_ps(-0.0f));
        hi = _mm256_max_ps(below, hi);
        lo = _mm256_xor_ps(hi, _mm256_set1_ps(-0.0f));
    }
    const __m256 one_half = _mm256_set1_ps(0.5f);
    const __m256 lo_half = _mm256_mul_ps(lo, one_half), hi_half = _mm256_mul_ps(hi, one_half);
    const __m256 middle = _mm256_add_ps(lo_half, hi_half);
    const __m256 half = _mm256_sub_ps(hi_half, lo_half);
    Affine8 candidates[clips.count];
    for (int k = 0; k < clips.count; ++k) {
        candidates[k] = candidate_of<kBits, kSymmetric, kForm>(
            middle, _mm256_mul_ps(half, _mm256_set1_ps(clips.factor[k])));
    }
    if constexpr (clips.count == 1) {
        return candidates[0];
    } else {
        static_assert(clips.count % 3 == 0);
        const __m256 max_code = _mm256_set1_ps(static_cast<float>((1 << kBits) - 1));
        __m256 errors[clips.count];
        for (int k = 0; k < clips.count; k += 3) {
            candidate_errors<3>(x, index, n, max_code, candidates + k, errors + k);
        }
        Affine8 best = candidates[0];
        __m256 best_error = infinity;
        for (int k = 0; k < clips.count; ++k) {
            const __m256 scale = _mm256_cvtph_ps(candidates[k].scale16);
            const __m256 scaled = _mm256_mul_ps(errors[k], _mm256_mul_ps(scale, scale));
            const __m256 error =
                _mm256_blendv_ps(infinity, scaled, _mm256_cmp_ps(scale, _mm256_setzero_ps(), _CMP_GT_OQ));
            if (k == 0) {
                best_error = error;
                continue;
            }
            const __m256 better = _mm256_cmp_ps(error, best_error, _CMP_LT_OQ);
            const __m256i words = _mm256_castps_si256(better);
            const __m128i better16 =
                _mm_packs_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
            best_error = _mm256_blendv_ps(best_error, error, better);
            best.scale16 = _mm_blendv_epi8(best.scale16, candidates[k].scale16, better16);
            best.zero16 = _mm_blendv_epi8(best.zero16, candidates[k].zero16, better16);
        }
        return make_affine(best.scale16, best.zero16, kShift);
    }
}

// Codes of x[i][8 lanes] for i = 0..n-1 (a multiple of 4) as bytes [2][n][4]: lanes 0-3 of every i, then
// lanes 4-7.
inline void make_codes(const float* x, int n, const Affine8& affine, __m256 max_code,
                       std::uint8_t* out) noexcept {
    for (int i = 0; i < n; i += 4) {
        __m256i code[4];
        for (int k = 0; k < 4; ++k) {
            const __m256 t = position(_mm256_loadu_ps(x + (i + k) * 8), affine);
            code[k] = _mm256_cvtps_epi32(clamp_code(t, max_code));
        }
        const __m256i bytes =
            _mm256_packus_epi16(_mm256_packs_epi32(code[0], code[1]), _mm256_packs_epi32(code[2], code[3]));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i * 4), _mm256_castsi256_si128(bytes));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(out + (n + i) * 4), _mm256_extracti128_si256(bytes, 1));
    }
}

inline void store(std::byte* out, __m256i x) noexcept {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), x);
}

inline __m256i field(__m256i codes, int shift, int mask) noexcept {
    return _mm256_and_si256(_mm256_srl_epi16(codes, _mm_cvtsi32_si128(shift)),
                            _mm256_set1_epi8(static_cast<char>(mask)));
}

// Bit kBit of every byte.
template <int kBit>
inline void store_single(std::byte* out, __m256i codes) noexcept {
    const int bits = _mm256_movemask_epi8(_mm256_slli_epi16(codes, 7 - kBit));
    std::memcpy(out, &bits, sizeof bits);
}

// Eight scales from index `first` on.
template <ScaleForm kForm>
inline void store_scales(std::byte* block, int first, __m128i scale16) noexcept {
    if constexpr (kForm == ScaleForm::byte) {
        const __m128i bytes = _mm_packus_epi16(_mm_srli_epi16(scale16, 7), _mm_setzero_si128());
        _mm_storel_epi64(reinterpret_cast<__m128i*>(block + first), bytes);
    } else {
        _mm_storeu_si128(reinterpret_cast<__m128i*>(block + std::size_t(first) * 2), scale16);
    }
}

}  // namespace
}  // namespace mixed_kv::kernels::avx2
