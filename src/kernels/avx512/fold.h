#pragma once

#include "formats/block_layout.h"
#include "kernels/avx512/lanes.h"

// Folds a block's scales and zero points into query (or probability) rows: the integers that vpdpbusd
// multiplies codes with, and the float constant beside them. The integers are those of the scalar kernels.
// Rows are prepared one register tile, up to 4 rows, at a time: what a row needs of latency (the largest
// magnitude, a division) is then shared, and the tile's integers are still in L1 when they are used.
namespace mixed_kv::kernels::avx512 {
namespace {

using formats::BlockLayout;

constexpr int kTileRows = 4;

// The integers of one pass over the page for one tile of rows: q * scale (or p * scale), or what the first
// pass left out of it.
struct Pass {
    // [kTileRows][length / 4][2][4] bytes: of four neighbours first the high, then the low bytes of the
    // 16-bit integer q = 256 high + low, both in -128..127.
    std::byte* parts;
    alignas(16) float inv[kTileRows];  // q = value * inv, value = q * step
    alignas(16) float step[kTileRows];
    alignas(16) float constant[kTileRows];
    alignas(16) float weight[kTileRows];        // of the channels' means, values only
    alignas(16) std::int32_t start[kTileRows];  // -centre * sum of the integers
};

constexpr int padded(int n) { return formats::round_up(n, 16); }

// Scratch: [scaled rows of a tile, float][their integers].
constexpr std::size_t fold_bytes(int length) {
    return std::size_t(kTileRows) * std::size_t(length) * (sizeof(float) + 2);
}

inline std::byte* integers(float* scaled, int length) noexcept {
    return reinterpret_cast<std::byte*>(scaled + std::ptrdiff_t(kTileRows) * length);
}

// Words of two registers' integers, packed within 128-bit parts, to [quad][high x 4, low x 4].
inline __m512i to_parts(__m512i words) noexcept {
    // The low byte is signed, so the high part is the high byte of the integer + 128.
    const __m512i high = _mm512_add_epi16(words, _mm512_set1_epi16(128));
    const __m512i bytes = _mm512_xor_si512(high, _mm512_set1_epi16(0x80));
    const __m512i order =
        _mm512_broadcast_i32x4(_mm_setr_epi8(1, 3, 5, 7, 0, 2, 4, 6, 9, 11, 13, 15, 8, 10, 12, 14));
    const __m512i quads = _mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7);
    return _mm512_permutexvar_epi64(quads, _mm512_shuffle_epi8(bytes, order));
}

// Rounds kRows rows of length values to 16 bits; lane r of largest is row r's largest magnitude. The scalar
// kernels clamp as well, which matters only for NaN; the row's constant carries it to the result.
template <int kBits, int kRows>
inline void round_rows(const float* scaled, int length, __m128 largest, int limit, Pass& pass) noexcept {
    const __m128 bound = _mm_set1_ps(static_cast<float>(limit));
    const __m128 nonzero = _mm_cmpgt_ps(largest, _mm_set1_ps(1e-30f));
    _mm_store_ps(pass.inv, _mm_and_ps(_mm_div_ps(bound, largest), nonzero));
    _mm_store_ps(pass.step, _mm_and_ps(_mm_div_ps(largest, bound), nonzero));
    __m512i sums[kRows];
    unroll<kRows>([&](auto r) { sums[r.value] = _mm512_setzero_si512(); });
    const auto pack = [&](auto r, int c, auto n_registers) {
        const float* x = scaled + std::ptrdiff_t(r.value) * length + c;
        const __m512 factor = _mm512_set1_ps(pass.inv[r.value]);
        const __m512i a = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x), factor));
        __m512i b = _mm512_setzero_si512();
        if constexpr (decltype(n_registers)::value == 2) {
            b = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x + 16), factor));
        }
        const __m512i words = _mm512_packs_epi32(a, b);
        sums[r.value] = _mm512_dpwssd_epi32(sums[r.value], words, _mm512_set1_epi16(1));
        return to_parts(words);
    };
    const std::ptrdiff_t row_bytes = std::ptrdiff_t(2) * length;
    int c = 0;
    for (; c + 32 <= length; c += 32) {
        unroll<kRows>([&](auto r) {
            _mm512_storeu_si512(pass.parts + r.value * row_bytes + 2 * c, pack(r, c, avx2::Int<2>{}));
        });
    }
    if (c < length) {
        unroll<kRows>([&](auto r) {
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(pass.parts + r.value * row_bytes + 2 * c),
                                _mm512_castsi512_si256(pack(r, c, avx2::Int<1>{})));
        });
    }
    constexpr int kCentreShift = kBits - 1;
    static_assert(formats::code_centre(kBits) == 1 << kCentreShift);
    __m512 lanes[kRows];
    unroll<kRows>([&](auto r) { lanes[r.value] = _mm512_castsi512_ps(sums[r.value]); });
    const __m128i total = _mm_castps_si128(reduce_rows<kRows>(lanes, AddInts{}));
    _mm_store_si128(reinterpret_cast<__m128i*>(pass.start),
                    _mm_sub_epi32(_mm_setzero_si128(), _mm_slli_epi32(total, kCentreShift)));
}

// Scales c .. c + 15.
template <formats::ScaleForm kForm>
inline __m512 load_scales(const std::byte* block, int c) noexcept {
    return kForm == formats::ScaleForm::byte ? load_byte_scales(block + c)
                                             : load_halves(block + std::size_t(c) * 2);
}

// Folds the block's scales and zero points into kRows rows of x and rounds them; length is a multiple of 16.
template <int kBits, bool kIsKey, formats::ScaleForm kForm, int kRows>
inline void fold(const std::byte* block, const BlockLayout& l, const float* x, std::ptrdiff_t stride,
                 int length, int limit, float* scaled, Pass& pass) noexcept {
    __m512 largest[kRows], constant[kRows], weight[kRows];
    unroll<kRows>(
        [&](auto r) { largest[r.value] = constant[r.value] = weight[r.value] = _mm512_setzero_ps(); });
    for (int c = 0; c < length; c += 16) {
        const __m512 scale = load_scales<kForm>(block, c);
        __m512 offset = _mm512_setzero_ps();
        if constexpr (kIsKey) {
            const __m512 zero = load_halves(block + l.offsets + std::size_t(c) * 2);
            offset = _mm512_fmadd_ps(scale, _mm512_set1_ps(formats::code_centre(kBits)), zero);
        }
        unroll<kRows>([&](auto r) {
            const __m512 value = _mm512_loadu_ps(x + r.value * stride + c);
            const __m512 product = _mm512_mul_ps(value, scale);
            _mm512_storeu_ps(scaled + std::ptrdiff_t(r.value) * length + c, product);
            largest[r.value] = max_magnitude(product, largest[r.value]);
            if constexpr (kIsKey) {
                constant[r.value] = _mm512_fmadd_ps(value, offset, constant[r.value]);
            } else {
                constant[r.value] = _mm512_add_ps(product, constant[r.value]);
                weight[r.value] = _mm512_add_ps(value, weight[r.value]);
            }
        });
    }
    const __m128 row_largest = reduce_rows<kRows>(largest, Max{});
    const __m128 row_constant = reduce_rows<kRows>(constant, Add{});
    if constexpr (kIsKey) {
        _mm_store_ps(pass.constant, row_constant);
    } else {
        _mm_store_ps(pass.constant, _mm_mul_ps(row_constant, _mm_set1_ps(formats::kCentreAboveMiddle)));
        _mm_store_ps(pass.weight, reduce_rows<kRows>(weight, Add{}));
    }
    round_rows<kBits, kRows>(scaled, length, row_largest, limit, pass);
}

// Replaces the pass by what it left out of the rows of the mask; the other rows' integers become 0. Product
// and difference are rounded one after the other as in the scalar kernels.
template <int kBits, int kRows>
inline void fold_rest(float* scaled, int length, int limit, unsigned rows, Pass& pass) noexcept {
    __m512 largest[kRows];
    unroll<kRows>([&](auto row) {
        constexpr int r = decltype(row)::value;
        largest[r] = _mm512_setzero_ps();
        const __m512 factor = _mm512_set1_ps(pass.inv[r]), unit = _mm512_set1_ps(pass.step[r]);
        for (int c = 0; c < length; c += 16) {
            float* x = scaled + std::ptrdiff_t(r) * length + c;
            const __m512 value = _mm512_loadu_ps(x);
            const __m512 q = _mm512_cvtepi32_ps(_mm512_cvtps_epi32(_mm512_mul_ps(value, factor)));
            __m512 rest = _mm512_sub_ps(value, _mm512_mul_ps(q, unit));
            if ((rows >> r & 1u) == 0) rest = _mm512_setzero_ps();
            _mm512_storeu_ps(x, rest);
            largest[r] = max_magnitude(rest, largest[r]);
        }
    });
    _mm_store_ps(pass.constant, _mm_setzero_ps());
    _mm_store_ps(pass.weight, _mm_setzero_ps());
    round_rows<kBits, kRows>(scaled, length, reduce_rows<kRows>(largest, Max{}), limit, pass);
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

}  // namespace
}  // namespace mixed_kv::kernels::avx512
