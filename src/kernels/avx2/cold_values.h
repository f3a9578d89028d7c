#pragma once

#include "kernels/avx2/codes.h"
#include "kernels/avx2/cold_block_rows.h"
#include "kernels/avx2/fold.h"

// pv over cold pages with the integer scheme of src/kernels/scalar/cold.cpp: the text of the AVX2 and the
// AVX-VNNI set.

namespace mixed_kv::kernels::avx2 {
namespace {

// Adds kRows rows' weighted values of kVectors vectors of 8 channels from 8 v0 on.
template <int kBits, int kRows, int kVectors>
inline __attribute__((always_inline)) void pv_tile(const PvArgs& a, const BlockLayout& l, const Pass& pass,
                                                   int r0, int v0, Ahead& ahead) noexcept {
    __m256i sum[kRows][kVectors];
    unroll<kRows>([&](auto r) {
        unroll<kVectors>([&](auto v) { sum[r.value][v.value] = _mm256_set1_epi32(pass.start[r.value]); });
    });
    const std::int16_t* p16 = pass.q16;
    for (int u = 0; u < kPage / 16; ++u, p16 += 16) {
        unroll<4>([&](auto quad) {
            constexpr int kQuad = decltype(quad)::value;
            if constexpr (kQuad % 2 == 0) ahead.step_lines<(8 * kBits * kVectors + 63) / 64>();
            Words codes[kVectors];
            unroll<kVectors>([&](auto v) {
                codes[v.value] = value_words<kBits, kQuad>(a.values.data, l, u, v0 + v.value);
            });
            unroll<kRows>([&](auto r) {
                const __m256i p = broadcast_pair(p16 + r.value * kPage + kQuad * 4);
                unroll<kVectors>([&](auto v) {
                    sum[r.value][v.value] = add_products(sum[r.value][v.value], codes[v.value].even, p);
                });
            });
            unroll<kRows>([&](auto r) {
                const __m256i p = broadcast_pair(p16 + r.value * kPage + kQuad * 4 + 2);
                unroll<kVectors>([&](auto v) {
                    sum[r.value][v.value] = add_products(sum[r.value][v.value], codes[v.value].odd, p);
                });
            });
        });
    }
    unroll<kVectors>([&](auto v) {
        const __m256 mean = load_halves(a.values.data + l.offsets + std::size_t(v0 + v.value) * 16);
        unroll<kRows>([&](auto row) {
            constexpr int r = decltype(row)::value;
            float* o = a.o + (r0 + r) * a.o_stride + (v0 + v.value) * 8;
            const __m256 rest =
                _mm256_fmadd_ps(_mm256_set1_ps(pass.weight[r]), mean, _mm256_set1_ps(pass.constant[r]));
            const __m256 x = _mm256_cvtepi32_ps(sum[r][v.value]);
            const __m256 add = _mm256_fmadd_ps(x, _mm256_set1_ps(pass.step[r]), rest);
            _mm256_storeu_ps(o, _mm256_add_ps(_mm256_loadu_ps(o), add));
        });
    });
}

// One pass of pv over rows r0 .. r0 + kRows - 1; out of line and its tiles inlined as in qk.
template <int kBits, int kRows>
__attribute__((noinline)) void pv_rows(const PvArgs& a, const BlockLayout& l, const Pass& pass, int r0,
                                       Ahead& page_ahead) noexcept {
    Ahead ahead = page_ahead;
    const int n_vectors = l.dim / 8;
    int v = 0;
    if constexpr (kRows <= 2) {
        for (; v + 4 <= n_vectors; v += 4) {
            pv_tile<kBits, kRows, 4>(a, l, pass, r0, v, ahead);
        }
    }
    for (; v < n_vectors; v += 2) {
        pv_tile<kBits, kRows, 2>(a, l, pass, r0, v, ahead);
    }
    page_ahead = ahead;
}

// All of pv for many rows, the page unpacked once.
template <int kBits, formats::ScaleForm kForm>
inline void pv_unpacked(const PvArgs& a, const BlockLayout& l, int limit) noexcept {
    const UnpackedPage page = place_unpacked(a.scratch, l.dim, kPage);
    prefetch_parameters(a.values.next, l);
    for (int t = 0; t < kPage; t += 8) {
        _mm256_storeu_ps(page.scale + t, load_scales<kForm>(a.values.data, t));
    }
    for (int c = 0; c < l.dim; c += 8) {
        _mm256_storeu_ps(page.offset + c, load_halves(a.values.data + l.offsets + std::size_t(c) * 2));
    }
    unpack_values<kBits>(a.values, l, page, Ahead(a.values.next, l.byte_plane, l.bytes));
    pv_blocks(a, page, limit);
}

template <int kBits>
void pv_cold(const PvArgs& a) noexcept {
    constexpr auto kForm = formats::is_narrow(kBits) ? formats::ScaleForm::byte : formats::ScaleForm::half;
    const int limit = formats::q16_limit(kBits, kPage);
    const BlockLayout l = formats::block_layout(false, kBits, a.values.head_dim);
    if (a.n_rows >= kUnpackRows) {
        pv_unpacked<kBits, kForm>(a, l, limit);
        return;
    }
    auto* scaled = reinterpret_cast<float*>(a.scratch);
    Pass pass;
    pass.q16 = integers(scaled, kPage);
    prefetch_parameters(a.values.next, l);
    Ahead ahead(a.values.next, l.byte_plane, l.bytes);
    for_row_tiles(a.n_rows, [&](int r, auto rows) {
        constexpr int kRows = decltype(rows)::value;
        fold<kBits, false, kForm, kRows>(a.values.data, l, a.p + r * kPage, kPage, kPage, limit, scaled,
                                         pass);
        const unsigned rest = heavy_rows<kRows>(a, pass.weight, r);
        pv_rows<kBits, kRows>(a, l, pass, r, ahead);
        if (rest != 0) {
            fold_rest<kBits, kRows>(scaled, kPage, limit, rest, pass);
            pv_rows<kBits, kRows>(a, l, pass, r, ahead);
        }
    });
}

}  // namespace
}  // namespace mixed_kv::kernels::avx2
