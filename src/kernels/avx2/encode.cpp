// Encoders that write the bytes of src/formats/codec.cpp. Eight scales are chosen at a time, one per lane:
// eight channels of keys (the sums run over tokens) or eight tokens of values (the sums run over channels).
// Every lane performs the scalar codec's float operations in its order, so the results are equal bit for bit;
// hence no FMA.

#include <limits>

#include "formats/codec.h"
#include "formats/format_list.h"
#include "formats/key_tiers.h"
#include "kernels/avx2/avx2.h"
#include "kernels/avx2/codes.h"

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

// The planes of one channel group from its codes [64 tokens][4 channels].
template <int kBits>
inline void store_key_group(std::byte* block, const BlockLayout& l, int g,
                            const std::uint8_t* codes) noexcept {
    constexpr formats::CodePlanes planes = formats::code_planes(kBits);
    __m256i c[8];  // tokens 8i..
    for (int i = 0; i < 8; ++i) {
        c[i] = load_i(codes + i * 32);
    }
    for (int i = 0; i < 8; ++i) {
        if constexpr (planes.byte) {
            store(block + l.byte_plane + std::size_t(g) * 256 + i * 32, c[i]);
        }
        if constexpr (planes.single) {
            store_single<planes.single_shift>(block + l.single_plane + std::size_t(g) * 32 + i * 4, c[i]);
        }
    }
    if constexpr (planes.nibble) {
        for (int i = 0; i < 4; ++i) {
            const int low = i / 2 * 4 + i % 2;
            const __m256i high = _mm256_slli_epi16(field(c[low + 2], 0, 15), 4);
            store(block + l.nibble_plane + std::size_t(g) * 128 + i * 32,
                  _mm256_or_si256(field(c[low], 0, 15), high));
        }
    }
    if constexpr (planes.pair) {
        for (int j = 0; j < 2; ++j) {
            __m256i x = field(c[j], planes.pair_shift, 3);
            x = _mm256_or_si256(x, _mm256_slli_epi16(field(c[j + 2], planes.pair_shift, 3), 2));
            x = _mm256_or_si256(x, _mm256_slli_epi16(field(c[j + 4], planes.pair_shift, 3), 4));
            x = _mm256_or_si256(x, _mm256_slli_epi16(field(c[j + 6], planes.pair_shift, 3), 6));
            store(block + l.pair_plane + std::size_t(g) * 64 + j * 32, x);
        }
    }
}

// The planes of tokens 8u..8u+7 from their codes [2][dim][4 tokens]. The pair plane holds 16 tokens a byte:
// it is completed by the odd u.
template <int kBits>
inline void store_value_tokens(std::byte* block, const BlockLayout& l, int u,
                               const std::uint8_t* codes) noexcept {
    constexpr formats::CodePlanes planes = formats::code_planes(kBits);
    const std::size_t row = std::size_t(l.dim) * 4;
    for (int v = 0; v < l.dim / 8; ++v) {
        const __m256i a = load_i(codes + v * 32), b = load_i(codes + row + v * 32);
        if constexpr (planes.byte) {
            store(block + l.byte_plane + 2 * u * row + v * 32, a);
            store(block + l.byte_plane + (2 * u + 1) * row + v * 32, b);
        }
        if constexpr (planes.nibble) {
            store(block + l.nibble_plane + u * row + v * 32,
                  _mm256_or_si256(field(a, 0, 15), _mm256_slli_epi16(field(b, 0, 15), 4)));
        }
        if constexpr (planes.pair) {
            std::byte* out = block + l.pair_plane + u / 2 * row + v * 32;
            __m256i x = _mm256_or_si256(field(a, planes.pair_shift, 3),
                                        _mm256_slli_epi16(field(b, planes.pair_shift, 3), 2));
            if (u % 2 != 0) {
                x = _mm256_or_si256(load_i(out), _mm256_slli_epi16(x, 4));
            }
            store(out, x);
        }
        if constexpr (planes.single) {
            std::byte* out = block + l.single_plane + std::size_t(2 * u) * (l.dim / 2) + v * 4;
            store_single<planes.single_shift>(out, a);
            store_single<planes.single_shift>(out + l.dim / 2, b);
        }
    }
}

// Rotates x[n][8 tokens] along n: see rotate() of the scalar codec.
inline void rotate(float* x, int n, int size) noexcept {
    if (size == 1) {
        return;
    }
    const __m256 norm = _mm256_set1_ps(formats::hadamard_norm(size));
    for (float* group = x; group < x + n * 8; group += size * 8) {
        int h = 1;
        for (; h * 4 <= size; h *= 4) {  // two distances at once: half the loads and stores, the same sums
            const bool last = h * 4 == size;
            for (int i = 0; i < size; i += 4 * h) {
                for (int j = i; j < i + h; ++j) {
                    float* p = group + j * 8;
                    const __m256 a = _mm256_loadu_ps(p), b = _mm256_loadu_ps(p + h * 8);
                    const __m256 c = _mm256_loadu_ps(p + 2 * h * 8), d = _mm256_loadu_ps(p + 3 * h * 8);
                    const __m256 a1 = _mm256_add_ps(a, b), b1 = _mm256_sub_ps(a, b);
                    const __m256 c1 = _mm256_add_ps(c, d), d1 = _mm256_sub_ps(c, d);
                    __m256 y[4] = {_mm256_add_ps(a1, c1), _mm256_add_ps(b1, d1), _mm256_sub_ps(a1, c1),
                                   _mm256_sub_ps(b1, d1)};
                    for (int k = 0; k < 4; ++k) {
                        _mm256_storeu_ps(p + k * h * 8, last ? _mm256_mul_ps(y[k], norm) : y[k]);
                    }
                }
            }
        }
        if (h < size) {
            for (int j = 0; j < h; ++j) {
                float* p = group + j * 8;
                const __m256 a = _mm256_loadu_ps(p), b = _mm256_loadu_ps(p + h * 8);
                _mm256_storeu_ps(p, _mm256_mul_ps(_mm256_add_ps(a, b), norm));
                _mm256_storeu_ps(p + h * 8, _mm256_mul_ps(_mm256_sub_ps(a, b), norm));
            }
        }
    }
}

// x[channel][8]: eight tokens from `token`, transposed; uncounted tokens read as zero.
inline void load_tokens(const EncodeArgs& a, int token, float* x) noexcept {
    for (int c = 0; c < a.head_dim; c += 8) {
        const int n = a.head_dim - c < 8 ? a.head_dim - c : 8;
        __m256 r[8];
        for (int t = 0; t < 8; ++t) {
            const std::uint16_t* row = a.rows + (token + t) * a.row_stride + c;
            if ((a.counted >> (token + t) & 1) == 0) {
                r[t] = _mm256_setzero_ps();
            } else {
                r[t] = n == 8 ? load_halves(row) : load_halves(row, n);
            }
        }
        transpose(r);
        for (int i = 0; i < n; ++i) {
            _mm256_storeu_ps(x + (c + i) * 8, r[i]);
        }
    }
}

// The means of the counted rows, rotated, as floats and as stored: rotated_means() of the definition over
// sums in its order. Returns the number of rows.
inline int means_of_rows(const EncodeArgs& a, float* rotated, std::uint16_t* means) noexcept {
    int n_rows = 0;
    for (int c = 0; c < a.head_dim; c += 8) {
        const int n = a.head_dim - c < 8 ? a.head_dim - c : 8;
        __m256 sum = _mm256_setzero_ps();
        n_rows = 0;
        for (int t = 0; t < kPage; ++t) {
            if ((a.counted >> t & 1) == 0) {
                continue;
            }
            ++n_rows;
            const std::uint16_t* row = a.rows + t * a.row_stride + c;
            sum = _mm256_add_ps(sum, n == 8 ? load_halves(row) : load_halves(row, n));
        }
        _mm256_store_ps(rotated + c, sum);
    }
    (void)formats::rotated_means(rotated, a.head_dim, n_rows, means);
    return n_rows;
}

// residuals[channel][8 lanes] += scale * (code - shift) of eight tokens.
inline void add_residuals(const float* x, int n, const Affine8& affine, __m256 max_code,
                          float* residuals) noexcept {
    const __m256 scale = _mm256_cvtph_ps(affine.scale16);
    for (int c = 0; c < n; ++c) {
        const __m256 t = clamp_code(position(_mm256_load_ps(x + c * 8), affine), max_code);
        const __m256 code = _mm256_round_ps(t, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
        const __m256 add = _mm256_mul_ps(_mm256_sub_ps(code, affine.shift), scale);
        _mm256_store_ps(residuals + c * 8, _mm256_add_ps(_mm256_load_ps(residuals + c * 8), add));
    }
}

// x[channel][8]: eight tokens from `token`, rotated, become differences from the means; uncounted ones stay
// zero.
inline void subtract_means(const EncodeArgs& a, int token, const std::uint16_t* means, float* x) noexcept {
    alignas(32) std::int32_t counted[8];
    for (int t = 0; t < 8; ++t) {
        counted[t] = (a.counted >> (token + t) & 1) != 0 ? -1 : 0;
    }
    const __m256 mask = _mm256_castsi256_ps(load_i(counted));
    for (int c = 0; c < a.head_dim; ++c) {
        const __m256 mean = _mm256_cvtph_ps(_mm_set1_epi16(static_cast<short>(means[c])));
        _mm256_storeu_ps(x + c * 8, _mm256_sub_ps(_mm256_loadu_ps(x + c * 8), _mm256_and_ps(mean, mask)));
    }
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

inline __m256 load_quads(const std::uint16_t* first, const std::uint16_t* second) noexcept {
    return _mm256_cvtph_ps(_mm_unpacklo_epi64(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(first)),
                                              _mm_loadl_epi64(reinterpret_cast<const __m128i*>(second))));
}

// Tokens that take part in choosing scales; list: null for all of them.
struct Counted {
    int n = 0;
    std::uint8_t index[kPage];
    const std::uint8_t* list() const noexcept { return n == kPage ? nullptr : index; }
};

inline void list_counted(std::uint64_t counted, Counted& tokens) noexcept {
    for (int t = 0; t < kPage; ++t) {
        tokens.index[tokens.n] = static_cast<std::uint8_t>(t);
        tokens.n += static_cast<int>(counted >> t & 1);
    }
}

// encode_channels() of the scalar codec.
template <int kBits, ScaleForm kForm>
inline void encode_channels(const EncodeArgs& a, const Counted& tokens, const BlockLayout& l,
                            const std::uint8_t* order, int n_channels, std::byte* block) noexcept {
    const __m256 max_code = _mm256_set1_ps(static_cast<float>((1 << kBits) - 1));
    for (int c = 0; c < n_channels; c += 8) {
        const int n = n_channels - c < 8 ? n_channels - c : 8;
        alignas(32) float x[kPage * 8];  // [token][8 channels]
        if (order != nullptr) {          // tiers: multiples of 16 channels
            const std::uint16_t* first = a.rows + order[c / 4] * 4;
            const std::uint16_t* second = a.rows + order[c / 4 + 1] * 4;
            for (int t = 0; t < kPage; ++t) {
                _mm256_store_ps(x + t * 8, load_quads(first + t * a.row_stride, second + t * a.row_stride));
            }
        } else {
            for (int t = 0; t < kPage; ++t) {
                const std::uint16_t* row = a.rows + t * a.row_stride + c;
                _mm256_store_ps(x + t * 8, n == 8 ? load_halves(row) : load_halves(row, n));
            }
        }
        const Affine8 affine = choose_affine<kBits, false, kForm>(x, tokens.list(), tokens.n);
        store_scales<kForm>(block, c, affine.scale16);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(block + l.offsets + std::size_t(c) * 2), affine.zero16);
        alignas(32) std::uint8_t codes[2 * kPage * 4];
        make_codes(x, kPage, affine, max_code, codes);
        store_key_group<kBits>(block, l, c / 4, codes);
        if (n > 4) {
            store_key_group<kBits>(block, l, c / 4 + 1, codes + kPage * 4);
        }
    }
}

// spread_of() of the scalar codec for every channel.
inline void spreads(const EncodeArgs& a, const Counted& tokens, float* ranges, float* means) noexcept {
    const __m256 share = _mm256_set1_ps(1.0f / static_cast<float>(tokens.n > 0 ? tokens.n : 1));
    for (int c = 0; c < a.head_dim; c += 8) {
        __m256 lo = _mm256_set1_ps(std::numeric_limits<float>::infinity());
        __m256 hi = _mm256_xor_ps(lo, _mm256_set1_ps(-0.0f)), sum = _mm256_setzero_ps();
        for (int i = 0; i < tokens.n; ++i) {
            const __m256 v = load_halves(a.rows + tokens.index[i] * a.row_stride + c);
            lo = _mm256_min_ps(v, lo);
            hi = _mm256_max_ps(v, hi);
            sum = _mm256_add_ps(sum, v);
        }
        const __m256 range = tokens.n > 0 ? _mm256_sub_ps(hi, lo) : _mm256_setzero_ps();
        _mm256_storeu_ps(ranges + c, range);
        _mm256_storeu_ps(means + c, _mm256_mul_ps(sum, share));
    }
}

void encode_tiers(int code_bits, const EncodeArgs& a, const Counted& tokens) noexcept {
    float ranges[kMaxHeadDim], means[kMaxHeadDim];
    spreads(a, tokens, ranges, means);
    formats::choose_key_tiers(code_bits, ranges, a.head_dim, a.block);
    const formats::KeyTiers tiers = formats::read_key_tiers(a.block, a.head_dim);
    for (int i = 0; i < tiers.n_tiers; ++i) {
        const formats::KeyTier& tier = tiers.tier[i];
        const std::uint8_t* order = tiers.order + tier.first / 4;
        const BlockLayout l = formats::block_layout_of_tier(tier.width, tier.n_channels);
        std::byte* data = a.block + tier.offset;
        switch (tier.width) {
            case 2:
                encode_channels<2, ScaleForm::byte>(a, tokens, l, order, tier.n_channels, data);
                break;
            case 3:
                encode_channels<3, ScaleForm::byte>(a, tokens, l, order, tier.n_channels, data);
                break;
            case 4:
                encode_channels<4, ScaleForm::byte>(a, tokens, l, order, tier.n_channels, data);
                break;
            case 6:
                encode_channels<6, ScaleForm::byte>(a, tokens, l, order, tier.n_channels, data);
                break;
            default:
                for (int c = 0; c < tier.n_channels; c += 8) {
                    const __m128 first = _mm_loadu_ps(means + order[c / 4] * 4);
                    const __m128 second = _mm_loadu_ps(means + order[c / 4 + 1] * 4);
                    _mm_storeu_si128(reinterpret_cast<__m128i*>(data + std::size_t(c) * 2),
                                     to_halves(_mm256_set_m128(second, first)));
                }
        }
    }
}

template <int kBits>
bool encode_key(const EncodeArgs& a) noexcept {
    if (largest_magnitude(a) >= 0x7c00) {
        return false;
    }
    std::memset(a.block, 0, formats::block_bytes(true, kBits, a.head_dim));
    Counted tokens;
    list_counted(a.counted, tokens);
    if (formats::is_tiered(true, kBits, a.head_dim)) {
        encode_tiers(kBits, a, tokens);
    } else {
        const BlockLayout l = formats::block_layout(true, kBits, a.head_dim);
        encode_channels<kBits, formats::is_narrow(kBits) ? ScaleForm::byte : ScaleForm::half>(
            a, tokens, l, nullptr, a.head_dim, a.block);
    }
    return true;
}

template <int kBits>
bool encode_value(const EncodeArgs& a) noexcept {
    const std::uint16_t largest = largest_magnitude(a);
    if (largest >= 0x7c00) {
        return false;
    }
    const int size = formats::hadamard_length(a.head_dim);
    // Rotation grows a value at most sqrt(size) times and the difference from a mean is at most twice as
    // large, beyond binary16's range perhaps. Scales and means surely fit below 2048 (sizes to 64) or 256 (to
    // 1024); above, the definition decides before anything is written.
    const std::uint16_t safe[] = {0x7800, 0x6800, 0x5c00};  // 32768, 2048, 256
    if (largest > safe[size == 1 ? 0 : size <= 64 ? 1 : 2]) {
        return formats::encode_value(kBits, a);
    }
    const BlockLayout l = formats::block_layout(false, kBits, a.head_dim);
    std::memset(a.block, 0, l.bytes);
    const __m256 max_code = _mm256_set1_ps(static_cast<float>((1 << kBits) - 1));
    alignas(32) float rotated[kMaxHeadDim];
    std::uint16_t means[kMaxHeadDim], offsets[kMaxHeadDim];
    const int n_rows = means_of_rows(a, rotated, means);
    alignas(32) float residuals[kMaxHeadDim * 8];  // [channel][token % 8]
    std::memset(residuals, 0, std::size_t(a.head_dim) * 8 * sizeof residuals[0]);
    alignas(32) float x[kMaxHeadDim * 8];  // [channel][8 tokens]
    alignas(32) std::uint8_t codes[2 * kMaxHeadDim * 4];
    for (int u = 0; u < kPage / 8; ++u) {
        load_tokens(a, u * 8, x);
        rotate(x, a.head_dim, size);
        subtract_means(a, u * 8, means, x);
        constexpr ScaleForm kForm = formats::is_narrow(kBits) ? ScaleForm::byte : ScaleForm::half;
        const Affine8 affine = choose_affine<kBits, true, kForm>(x, nullptr, a.head_dim);
        store_scales<kForm>(a.block, u * 8, affine.scale16);
        for (int c = a.head_dim; c < l.dim; ++c) {
            _mm256_store_ps(x + c * 8, _mm256_setzero_ps());
        }
        make_codes(x, l.dim, affine, max_code, codes);
        add_residuals(x, a.head_dim, affine, max_code, residuals);
        for (int c = a.head_dim; c < l.dim; ++c) {  // the padding's codes are zero
            std::memset(codes + c * 4, 0, 4);
            std::memset(codes + (l.dim + c) * 4, 0, 4);
        }
        store_value_tokens<kBits>(a.block, l, u, codes);
    }
    formats::value_offsets(rotated, residuals, a.head_dim, n_rows, means, offsets);
    std::memcpy(a.block + l.offsets, offsets, std::size_t(a.head_dim) * sizeof offsets[0]);
    return true;
}

}  // namespace

#define MIXED_KV_DEFINE_FORMAT(name, bits)                                                            \
    bool encode_key_##name##_avx2(const EncodeArgs& args) noexcept { return encode_key<bits>(args); } \
    bool encode_value_##name##_avx2(const EncodeArgs& args) noexcept { return encode_value<bits>(args); }
MIXED_KV_FOR_EACH_COLD_FORMAT(MIXED_KV_DEFINE_FORMAT)

}  // namespace mixed_kv::kernels::avx2
