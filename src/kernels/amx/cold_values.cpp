// pv over cold pages for many query rows, with the integer scheme of src/kernels/scalar/cold.cpp.

#include "formats/format_list.h"
#include "kernels/amx/amx.h"
#include "kernels/amx/integers.h"
#include "kernels/avx512/avx512.h"
#include "kernels/avx512/codes.h"
#include "kernels/avx512/sums.h"

namespace mixed_kv::kernels::amx {
namespace {

// Centred codes as [16][dim][4 tokens] bytes: 16 token groups of 16 channels are a tile.
template <int kBits>
inline void unpack_values(const std::byte* block, const std::byte* next, const BlockLayout& l,
                          std::byte* out) noexcept {
    avx512::Ahead ahead(next, l.byte_plane, l.bytes, block);
    const std::ptrdiff_t row = std::ptrdiff_t(l.dim) * 4;
    for (int u = 0; u < kPage / 16; ++u) {
        for (int v = 0; v < l.dim / 16; ++v) {
            ahead.step<avx512::lines_per_step(kBits, 4)>();
            unroll<4>([&](auto g) {
                const __m512i codes = avx512::value_codes<kBits, decltype(g)::value>(block, l, u, v);
                _mm512_storeu_si512(out + (4 * u + g.value) * row + v * 64, centred<kBits>(codes));
            });
        }
    }
}

// Adds n rows' sums of kTiles tiles of 16 channels from c on; only_step: a second pass.
template <int kTiles>
inline void add_values(const PvArgs& a, const BlockLayout& l, const Integers& s, const Pass& pass, int r0,
                       int n, int c, bool only_step) noexcept {
    __m512 mean[kTiles];
    unroll<kTiles>([&](auto j) {
        mean[j.value] = avx512::load_halves(a.values.data + l.offsets + std::size_t(c + j.value * 16) * 2);
    });
    const __m512 nothing = _mm512_setzero_ps();
    for (int r = 0; r < n; ++r) {
        const __m512 step = _mm512_set1_ps(pass.step[r]);
        const __m512 constant = only_step ? nothing : _mm512_set1_ps(s.constant[r]);
        const __m512 weight = only_step ? nothing : _mm512_set1_ps(s.weight[r]);
        float* o = a.o + (r0 + r) * a.o_stride + c;
        unroll<kTiles>([&](auto j) {
            const __m512 x = sums_of(s, r, j.value * 16);
            const __m512 add = _mm512_fmadd_ps(x, step, _mm512_fmadd_ps(weight, mean[j.value], constant));
            _mm512_storeu_ps(o + j.value * 16, _mm512_add_ps(_mm512_loadu_ps(o + j.value * 16), add));
        });
    }
}

template <int kBits>
void pv_cold(const PvArgs& a) noexcept {
    const BlockLayout l = formats::block_layout(false, kBits, a.values.head_dim);
    const int limit = formats::q16_limit(kBits, kPage);
    Integers s;
    place(s, a.scratch, kPage);
    load_parameters<kBits, false>(a.values.data, a.values.next, l, kPage, s);
    unpack_values<kBits>(a.values.data, a.values.next, l, s.codes);
    const std::ptrdiff_t row_bytes = std::ptrdiff_t(l.dim) * 4;
    const TilesOfThread tiles;
    for (int r = 0; r < a.n_rows; r += kTileRows) {
        const int n = a.n_rows - r < kTileRows ? a.n_rows - r : kTileRows;
        const bool rest =
            fold<false>(a.p + std::ptrdiff_t(r) * kPage, kPage, n, kPage, limit, s, [&](__m512, __m512 peak) {
                const __m512 allowed =
                    a.mass == nullptr
                        ? _mm512_setzero_ps()
                        : _mm512_mul_ps(_mm512_set1_ps(formats::kMassShareAllowed),
                                        _mm512_maskz_loadu_ps(avx512::lane_mask(n), a.mass + r));
                return unsigned(_mm512_cmp_ps_mask(peak, allowed, _CMP_GT_OQ));
            });
        for (int i = 0; i < (rest ? 2 : 1); ++i) {
            const Pass& pass = i == 0 ? s.first : s.rest;
            int c = 0;
            for (; c + 64 <= l.dim; c += 64) {
                multiply(pass, 1, s.codes + std::ptrdiff_t(c) * 4, row_bytes, 4, s);
                add_values<4>(a, l, s, pass, r, n, c, i != 0);
            }
            for (; c < l.dim; c += 16) {
                multiply(pass, 1, s.codes + std::ptrdiff_t(c) * 4, row_bytes, 1, s);
                add_values<1>(a, l, s, pass, r, n, c, i != 0);
            }
        }
    }
}

}  // namespace

#define MIXED_KV_DEFINE_FORMAT(name, bits)                                               \
    void pv_##name##_amx(const PvArgs& args) noexcept {                                  \
        args.n_rows < kMinRows ? avx512::pv_##name##_avx512(args) : pv_cold<bits>(args); \
    }
MIXED_KV_FOR_EACH_COLD_FORMAT(MIXED_KV_DEFINE_FORMAT)

}  // namespace mixed_kv::kernels::amx
