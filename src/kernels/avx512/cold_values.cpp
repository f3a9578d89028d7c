// pv over cold pages with the integer scheme of src/kernels/scalar/cold.cpp.

#include "formats/format_list.h"
#include "kernels/avx512/avx512.h"
#include "kernels/avx512/codes.h"
#include "kernels/avx512/fold.h"
#include "kernels/avx512/sums.h"

namespace mixed_kv::kernels::avx512 {
namespace {

// Adds kRows rows' weighted values of kVectors vectors of 16 channels from 16 v0 on.
template <int kBits, int kRows, int kVectors>
__attribute__((noinline)) void pv_tile(const PvArgs& a, const BlockLayout& l, const Pass& pass, int r0,
                                       int v0, Ahead& page_ahead) noexcept {
    Ahead ahead = page_ahead;
    Sums<kRows, kVectors> sum;
    clear<kRows, kVectors>(sum);
    const std::byte* parts = pass.parts;
    for (int u = 0; u < kPage / 16; ++u, parts += 32) {
        unroll<4>([&](auto g) {
            constexpr int kG = decltype(g)::value;
            ahead.step<lines_per_step(kBits, kVectors)>();
            __m512i codes[kVectors];
            unroll<kVectors>(
                [&](auto v) { codes[v.value] = value_codes<kBits, kG>(a.values.data, l, u, v0 + v.value); });
            unroll<kRows>([&](auto r) {
                unroll<kVectors>([&](auto v) {
                    add_products(sum[r.value][v.value], codes[v.value], parts + r.value * 2 * kPage + kG * 8);
                });
            });
        });
    }
    page_ahead = ahead;
    unroll<kRows>([&](auto row) {
        constexpr int r = decltype(row)::value;
        const __m512 step = _mm512_set1_ps(pass.step[r]), constant = _mm512_set1_ps(pass.constant[r]),
                     weight = _mm512_set1_ps(pass.weight[r]);
        unroll<kVectors>([&](auto v) {
            float* o = a.o + (r0 + r) * a.o_stride + (v0 + v.value) * 16;
            const __m512 x = _mm512_cvtepi32_ps(whole<0>(sum[r][v.value], pass.start[r]));
            const __m512 mean = load_halves(a.values.data + l.offsets + std::size_t(v0 + v.value) * 32);
            const __m512 add = _mm512_fmadd_ps(x, step, _mm512_fmadd_ps(weight, mean, constant));
            _mm512_storeu_ps(o, _mm512_add_ps(_mm512_loadu_ps(o), add));
        });
    });
}

template <int kBits, int kRows>
inline void pv_rows(const PvArgs& a, const BlockLayout& l, const Pass& pass, int r0, Ahead& ahead) noexcept {
    const int n_vectors = l.dim / 16;
    int v = 0;
    if constexpr (kRows <= 2) {
        for (; v + 4 <= n_vectors; v += 4) {
            pv_tile<kBits, kRows, 4>(a, l, pass, r0, v, ahead);
        }
    }
    for (; v + 2 <= n_vectors; v += 2) {
        pv_tile<kBits, kRows, 2>(a, l, pass, r0, v, ahead);
    }
    if (v < n_vectors) {
        pv_tile<kBits, kRows, 1>(a, l, pass, r0, v, ahead);
    }
}

// Rows of the tile in which one token of the page holds more of the row's weight than 16 bits resolve.
template <int kRows>
inline unsigned heavy_rows(const PvArgs& a, const Pass& pass, int r0) noexcept {
    unsigned rows = 0;
    for (int r = 0; r < kRows; ++r) {
        const float allowed = a.mass == nullptr ? 0.0f : formats::kMassShareAllowed * a.mass[r0 + r];
        // The largest weight is at most their sum, which rounding does not change: weights are not negative.
        if (pass.weight[r] <= allowed) continue;
        __m512 largest = _mm512_setzero_ps();
        for (int t = 0; t < kPage; t += 16) {
            largest = _mm512_max_ps(_mm512_loadu_ps(a.p + (r0 + r) * kPage + t), largest);
        }
        if (horizontal_max(largest) > allowed) rows |= 1u << r;
    }
    return rows;
}

template <int kBits>
void pv_cold(const PvArgs& a) noexcept {
    constexpr auto kForm = formats::is_narrow(kBits) ? formats::ScaleForm::byte : formats::ScaleForm::half;
    const int limit = formats::q16_limit(kBits, kPage);
    const BlockLayout l = formats::block_layout(false, kBits, a.values.head_dim);
    auto* scaled = reinterpret_cast<float*>(a.scratch);
    Pass pass;
    pass.parts = integers(scaled, kPage);
    prefetch_parameters(a.values.next, l);
    Ahead ahead(a.values.next, l.byte_plane, l.bytes, a.values.data);
    for_row_tiles(a.n_rows, [&](int r, auto rows) {
        constexpr int kRows = decltype(rows)::value;
        fold<kBits, false, kForm, kRows>(a.values.data, l, a.p + r * kPage, kPage, kPage, limit, scaled,
                                         pass);
        const unsigned rest = heavy_rows<kRows>(a, pass, r);
        pv_rows<kBits, kRows>(a, l, pass, r, ahead);
        if (rest != 0) {
            fold_rest<kBits, kRows>(scaled, kPage, limit, rest, pass);
            pv_rows<kBits, kRows>(a, l, pass, r, ahead);
        }
    });
}

}  // namespace

#define MIXED_KV_DEFINE_FORMAT(name, bits) \
    void pv_##name##_avx512(const PvArgs& args) noexcept { pv_cold<bits>(args); }
MIXED_KV_FOR_EACH_COLD_FORMAT(MIXED_KV_DEFINE_FORMAT)

}  // namespace mixed_kv::kernels::avx512
