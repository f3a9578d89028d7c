#pragma once

#include "formats/block_layout.h"
#include "kernels/avx2/products.h"
#include "kernels/contract.h"

// Folds a block's scales and zero points into query (or probability) rows: the 16-bit integers that vpmaddwd
// multiplies codes with, and the float constant beside them. The integers are those of the scalar kernels.
// Rows are prepared one register tile, up to 4 rows, at a time: what a row needs of latency (the largest
// magnitude, a division) is then shared, and the tile's integers are still in L1 when they are used.
namespace mixed_kv::kernels::avx2 {
namespace {

using formats::BlockLayout;

constexpr int kTileRows = 4;

// The integers of one pass over the page for one tile of rows: q * scale (or p * scale), or what the first
// pass left out of it.
struct Pass {
    std::int16_t* q16;  // [kTileRows][length], groups of four as 0 2 1 3: what even and odd bytes meet
    alignas(16) float step[kTileRows];
    alignas(16) float constant[kTileRows];
    alignas(16) float weight[kTileRows];        // of the channels' means, values only
    alignas(16) std::int32_t start[kTileRows];  // -centre * sum of q16
};

constexpr int padded(int n) { return formats::round_up(n, 16); }

// Scratch: [scaled rows of a tile, float][their integers].
constexpr std::size_t fold_bytes(int length) {
    return std::size_t(kTileRows) * std::size_t(length) * (sizeof(float) + sizeof(std::int16_t));
}

inline std::int16_t* integers(float* scaled, int length) noexcept {
    return reinterpret_cast<std::int16_t*>(scaled + std::ptrdiff_t(kTileRows) * length);
}

// op over the lanes of each of kRows vectors, at once: lane r of the result is row r's, those above are
// unspecified. The order of operations is that of horizontal_sum() for every number of rows.
template <int kRows, typename Op>
inline __m128 reduce(const __m256 (&x)[kRows], Op&& op) noexcept {
    if constexpr (kRows == 1) {
        __m128 s = op(_mm256_castps256_ps128(x[0]), _mm256_extractf128_ps(x[0], 1));
        s = op(s, _mm_movehl_ps(s, s));
        return op(s, _mm_movehdup_ps(s));
    } else {
        const __m256 a = x[0], b = x[1], c = x[kRows > 2 ? 2 : 0], d = x[kRows > 3 ? 3 : 1];
        const __m256 ac = op(_mm256_permute2f128_ps(a, c, 0x20), _mm256_permute2f128_ps(a, c, 0x31));
        const __m256 bd = op(_mm256_permute2f128_ps(b, d, 0x20), _mm256_permute2f128_ps(b, d, 0x31));
        const __m256 s = op(_mm256_unpacklo_ps(ac, bd), _mm256_unpackhi_ps(ac, bd));
        const __m128d low = _mm_castps_pd(_mm256_castps256_ps128(s));
        const __m128d high = _mm_castps_pd(_mm256_extractf128_ps(s, 1));
        return op(_mm_castpd_ps(_mm_unpacklo_pd(low, high)), _mm_castpd_ps(_mm_unpackhi_pd(low, high)));
    }
}

struct Add {
    __m256 operator()(__m256 a, __m256 b) const noexcept { return _mm256_add_ps(a, b); }
    __m128 operator()(__m128 a, __m128 b) const noexcept { return _mm_add_ps(a, b); }
};
struct Max {
    __m256 operator()(__m256 a, __m256 b) const noexcept { return _mm256_max_ps(a, b); }
    __m128 operator()(__m128 a, __m128 b) const noexcept { return _mm_max_ps(a, b); }
};
struct AddInts {
    __m256 operator()(__m256 a, __m256 b) const noexcept {
        return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a), _mm256_castps_si256(b)));
    }
    __m128 operator()(__m128 a, __m128 b) const noexcept {
        return _mm_castsi128_ps(_mm_add_epi32(_mm_castps_si128(a), _mm_castps_si128(b)));
    }
};

// q0 q1 q2 q3 -> q0 q2 q1 q3, and back.
inline __m256i swap_middle(__m256i words) noexcept {
    return _mm256_shuffle_epi8(words,
                               _mm256_setr_epi8(0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15,  //
                                                0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15));
}

// Rounds kRows rows of length values to 16 bits; lane r of largest is row r's largest magnitude. The scalar
// kernels clamp as well, which matters only for NaN; the row's constant carries it to the result.
template <int kBits, int kRows>
inline void round_rows(const float* scaled, int length, __m128 largest, int limit, Pass& pass) noexcept {
    const __m128 bound = _mm_set1_ps(static_cast<float>(limit));
    const __m128 nonzero = _mm_cmpgt_ps(largest, _mm_set1_ps(1e-30f));
    alignas(16) float inv[kTileRows];
    _mm_store_ps(inv, _mm_and_ps(_mm_div_ps(bound, largest), nonzero));
    _mm_store_ps(pass.step, _mm_and_ps(_mm_div_ps(largest, bound), nonzero));
    __m256i sums[kRows];
    unroll<kRows>([&](auto r) { sums[r.value] = _mm256_setzero_si256(); });
    for (int c = 0; c < length; c += 16) {
        unroll<kRows>([&](auto r) {
            const float* x = scaled + std::ptrdiff_t(r.value) * length + c;
            const __m256 factor = _mm256_broadcast_ss(inv + r.value);
            const __m256i a = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x), factor));
            const __m256i b = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + 8), factor));
            const __m256i packed = _mm256_permute4x64_epi64(_mm256_packs_epi32(a, b), 0xd8);
            sums[r.value] = _mm256_add_epi32(sums[r.value], _mm256_madd_epi16(packed, _mm256_set1_epi16(1)));
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(pass.q16 + std::ptrdiff_t(r.value) * length + c),
                                swap_middle(packed));
        });
    }
    constexpr int kCentreShift = kBits - 1;
    static_assert(formats::code_centre(kBits) == 1 << kCentreShift);
    __m256 lanes[kRows];
    unroll<kRows>([&](auto r) { lanes[r.value] = _mm256_castsi256_ps(sums[r.value]); });
    const __m128i total = _mm_castps_si128(reduce<kRows>(lanes, AddInts{}));
    _mm_store_si128(reinterpret_cast<__m128i*>(pass.start),
                    _mm_sub_epi32(_mm_setzero_si128(), _mm_slli_epi32(total, kCentreShift)));
}

// Scales c .. c + 7.
template <formats::ScaleForm kForm>
inline __m256 load_scales(const std::byte* block, int c) noexcept {
    return kForm == formats::ScaleForm::byte ? load_byte_scales(block + c)
                                             : load_halves(block + std::size_t(c) * 2);
}

// What a key code of the centre stands for, channels c .. c + 7.
template <int kBits>
inline __m256 centre_offset(const std::byte* block, const BlockLayout& l, __m256 scale, int c) noexcept {
    const __m256 zero = load_halves(block + l.offsets + std::size_t(c) * 2);
    return _mm256_fmadd_ps(scale, _mm256_set1_ps(formats::code_centre(kBits)), zero);
}

// Folds the block's scales and zero points into kRows rows of x and rounds them; length is a multiple of 16.
template <int kBits, bool kIsKey, formats::ScaleForm kForm, int kRows>
inline void fold(const std::byte* block, const BlockLayout& l, const float* x, std::ptrdiff_t stride,
                 int length, int limit, float* scaled, Pass& pass) noexcept {
    __m256 largest[kRows], constant[kRows], weight[kRows];
    unroll<kRows>(
        [&](auto r) { largest[r.value] = constant[r.value] = weight[r.value] = _mm256_setzero_ps(); });
    for (int c = 0; c < length; c += 8) {
        const __m256 scale = load_scales<kForm>(block, c);
        __m256 offset = _mm256_setzero_ps();
        if constexpr (kIsKey) offset = centre_offset<kBits>(block, l, scale, c);
        unroll<kRows>([&](auto r) {
            const __m256 value = _mm256_loadu_ps(x + r.value * stride + c);
            const __m256 product = _mm256_mul_ps(value, scale);
            _mm256_storeu_ps(scaled + std::ptrdiff_t(r.value) * length + c, product);
            largest[r.value] = _mm256_max_ps(abs_ps(product), largest[r.value]);
            if constexpr (kIsKey) {
                constant[r.value] = _mm256_fmadd_ps(value, offset, constant[r.value]);
            } else {
                constant[r.value] = _mm256_add_ps(product, constant[r.value]);
                weight[r.value] = _mm256_add_ps(value, weight[r.value]);
            }
        });
    }
    const __m128 row_constant = reduce<kRows>(constant, Add{});
    if constexpr (kIsKey) {
        _mm_store_ps(pass.constant, row_constant);
    } else {
        _mm_store_ps(pass.constant, _mm_mul_ps(row_constant, _mm_set1_ps(formats::kCentreAboveMiddle)));
        _mm_store_ps(pass.weight, reduce<kRows>(weight, Add{}));
    }
    round_rows<kBits, kRows>(scaled, length, reduce<kRows>(largest, Max{}), limit, pass);
}

// Replaces the pass by what it left out of the rows of the mask; the other rows' integers become 0. Product
// and difference are rounded one after the other as in the scalar kernels.
template <int kBits, int kRows>
inline void fold_rest(float* scaled, int length, int limit, unsigned rows, Pass& pass) noexcept {
    __m256 largest[kRows];
    unroll<kRows>([&](auto row) {
        constexpr int r = decltype(row)::value;
        largest[r] = _mm256_setzero_ps();
        const __m256 unit = _mm256_set1_ps(pass.step[r]);
        for (int c = 0; c < length; c += 16) {
            float* x = scaled + std::ptrdiff_t(r) * length + c;
            const __m256i q = swap_middle(load_i(pass.q16 + std::ptrdiff_t(r) * length + c));
            const __m256 a = _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(_mm256_castsi256_si128(q)));
            const __m256 b = _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(_mm256_extracti128_si256(q, 1)));
            __m256 rest_a = _mm256_sub_ps(_mm256_loadu_ps(x), _mm256_mul_ps(a, unit));
            __m256 rest_b = _mm256_sub_ps(_mm256_loadu_ps(x + 8), _mm256_mul_ps(b, unit));
            if ((rows >> r & 1u) == 0) rest_a = rest_b = _mm256_setzero_ps();
            _mm256_storeu_ps(x, rest_a);
            _mm256_storeu_ps(x + 8, rest_b);
            largest[r] = _mm256_max_ps(_mm256_max_ps(abs_ps(rest_a), abs_ps(rest_b)), largest[r]);
        }
    });
    _mm_store_ps(pass.constant, _mm_setzero_ps());
    _mm_store_ps(pass.weight, _mm_setzero_ps());
    round_rows<kBits, kRows>(scaled, length, reduce<kRows>(largest, Max{}), limit, pass);
}

// Asks for the scales and zero points (or means) of the next page, and before that for a line of each 4 KiB
// of it: the walks of the page tables overlap.
inline void prefetch_parameters(const std::byte* next, const BlockLayout& l) noexcept {
    if (next == nullptr) return;
    for (std::size_t at = 4096; at < l.bytes; at += 4096) {
        prefetch(next + at);
    }
    prefetch(next + l.bytes - 1);
    for (std::size_t at = 0; at < l.byte_plane; at += 64) {
        prefetch(next + at);
    }
}

// Rows of a tile in which one token of the page holds more of the row's weight than 16 bits resolve. weight:
// the sum of each row of p.
template <int kRows>
inline unsigned heavy_rows(const PvArgs& a, const float* weight, int r0) noexcept {
    unsigned rows = 0;
    for (int r = 0; r < kRows; ++r) {
        const float allowed = a.mass == nullptr ? 0.0f : formats::kMassShareAllowed * a.mass[r0 + r];
        // The largest weight is at most their sum, which rounding does not change: weights are not negative.
        if (weight[r] <= allowed) continue;
        __m256 largest = _mm256_setzero_ps();
        for (int t = 0; t < kPage; t += 8) {
            largest = _mm256_max_ps(_mm256_loadu_ps(a.p + (r0 + r) * kPage + t), largest);
        }
        if (horizontal_max(largest) > allowed) rows |= 1u << r;
    }
    return rows;
}

inline __m256i broadcast_pair(const std::int16_t* two) noexcept {
    std::int32_t bits;
    std::memcpy(&bits, two, sizeof bits);
    return _mm256_set1_epi32(bits);
}

}  // namespace
}  // namespace mixed_kv::kernels::avx2
