#pragma once

#include "kernels/avx2/codes.h"
#include "kernels/avx2/matrix_tile.h"
#include "kernels/contract.h"

// Cold pages and many query rows: the codes of a page are unpacked once per call and multiplied as a matrix
// (cold_block_rows.h) with the integers that the kernels for few rows use, so that results are the same bit
// for bit. What depends on the format is how a page is unpacked: templates here, called from cold_keys.h and
// cold_values.h.
namespace mixed_kv::kernels::avx2 {

// From here on unpacking a page once costs less than unpacking it for every few rows.
inline constexpr int kUnpackRows = 16;

// A page without its format. Columns are tokens and the summed axis is channels (keys), or the reverse
// (values).
struct UnpackedPage {
    int n_columns, n_pairs;  // summed: 2 n_pairs, a multiple of 16
    IntPair* codes;          // centred, [n_columns / 16][n_pairs][16], pairs in the order of pair_row()
    float* scale;            // of the summed axis [2 n_pairs]
    float* offset;           // keys: what the centre stands for [2 n_pairs]; values: the columns' means
    std::byte* rows;         // scratch for a block of query rows
};

UnpackedPage place_unpacked(std::byte* scratch, int n_columns, int n_summed) noexcept;
inline constexpr int kRowsAtOnce = 6;  // of a block of query rows

namespace {

// Where the pairs (4 g, 4 g + 1) and (4 g + 2, 4 g + 3) of the summed axis lie: rows pair_row(g) and the next
// one. Of every 16 numbers those in the middle are swapped, as packing two vectors of 32-bit integers leaves
// them.
constexpr int pair_row(int g) { return 2 * (g % 4 == 1 ? g + 1 : g % 4 == 2 ? g - 1 : g); }

// Four codes of each lane as two pairs, less the centre, to two rows of a panel.
inline void store_pairs(__m256i codes, __m256i centre, IntPair* row) noexcept {
    const __m256i first = _mm256_setr_epi8(0, -1, 1, -1, 4, -1, 5, -1, 8, -1, 9, -1, 12, -1, 13, -1,  //
                                           0, -1, 1, -1, 4, -1, 5, -1, 8, -1, 9, -1, 12, -1, 13, -1);
    const __m256i second = _mm256_setr_epi8(2, -1, 3, -1, 6, -1, 7, -1, 10, -1, 11, -1, 14, -1, 15, -1,  //
                                            2, -1, 3, -1, 6, -1, 7, -1, 10, -1, 11, -1, 14, -1, 15, -1);
    auto* out = reinterpret_cast<__m256i*>(row);
    _mm256_storeu_si256(out, _mm256_sub_epi16(_mm256_shuffle_epi8(codes, first), centre));
    _mm256_storeu_si256(out + 2, _mm256_sub_epi16(_mm256_shuffle_epi8(codes, second), centre));
}

template <int kBits>
inline void unpack_keys(const PageData& keys, const formats::BlockLayout& l, const UnpackedPage& page,
                        Ahead ahead) noexcept {
    const __m256i centre = _mm256_set1_epi16(formats::code_centre(kBits));
    const std::ptrdiff_t panel = std::ptrdiff_t(page.n_pairs) * 16;
    for (int g = 0; g < l.dim / 4; ++g) {
        ahead.step_lines<(32 * kBits + 63) / 64>();
        IntPair* row = page.codes + std::ptrdiff_t(pair_row(g)) * 16;
        const auto unpack = [&](auto half) {
            constexpr int kHalf = decltype(half)::value;
            unroll<2>([&](auto j) {
                const CodePair codes = load_codes<kBits, kHalf>(key_planes(keys.data, l, g, kHalf, j.value));
                store_pairs(codes.a, centre, row + 2 * kHalf * panel + j.value * 8);
                store_pairs(codes.b, centre, row + (2 * kHalf + 1) * panel + j.value * 8);
            });
        };
        unpack(Int<0>{});
        unpack(Int<1>{});
    }
}

template <int kBits>
inline void unpack_values(const PageData& values, const formats::BlockLayout& l, const UnpackedPage& page,
                          Ahead ahead) noexcept {
    const __m256i centre = _mm256_set1_epi16(formats::code_centre(kBits));
    const std::ptrdiff_t panel = std::ptrdiff_t(page.n_pairs) * 16;
    for (int u = 0; u < kPage / 16; ++u) {
        for (int v = 0; v < l.dim / 8; ++v) {
            ahead.step_lines<(16 * kBits + 63) / 64>();
            unroll<2>([&](auto half) {
                constexpr int kHalf = decltype(half)::value;
                const CodePair codes =
                    load_codes<kBits, kHalf>(value_planes(values.data, l, 2 * u + kHalf, v));
                IntPair* column = page.codes + v / 2 * panel + v % 2 * 8;
                const int g = 4 * u + 2 * kHalf;
                store_pairs(codes.a, centre, column + pair_row(g) * 16);
                store_pairs(codes.b, centre, column + pair_row(g + 1) * 16);
            });
        }
    }
}

}  // namespace
}  // namespace mixed_kv::kernels::avx2
