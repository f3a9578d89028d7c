// qk over cold pages for many query rows, with the integer scheme of src/kernels/scalar/cold.cpp.

#include "formats/format_list.h"
#include "kernels/amx/amx.h"
#include "kernels/amx/integers.h"
#include "kernels/avx2/avx2.h"
#include "kernels/avx512/avx512.h"
#include "kernels/avx512/codes.h"
#include "kernels/avx512/sums.h"
#include "kernels/tiered_keys.h"

namespace mixed_kv::kernels::amx {
namespace {

// Centred codes as [dim / 4][64 tokens][4 channels] bytes: 16 channel groups of 16 tokens are a tile.
template <int kBits>
inline void unpack_keys(const std::byte* block, const std::byte* next, const BlockLayout& l,
                        std::byte* out) noexcept {
    avx512::Ahead ahead(next, l.byte_plane, l.bytes, block);
    for (int g = 0; g < l.dim / 4; ++g, out += 4 * kPage) {
        ahead.step<avx512::lines_per_step(kBits, 4)>();
        unroll<4>([&](auto j) {
            const __m512i codes = avx512::plain_key_codes<kBits, decltype(j)::value>(block, l, g);
            _mm512_storeu_si512(out + j.value * 64, centred<kBits>(codes));
        });
    }
}

// n rows' scores from r0 on; add: on top of what is there. constants: of the rows; null: 0.
inline void write_scores(const QkArgs& a, const Integers& s, const Pass& pass, const float* constants, int r0,
                         int n, bool add) noexcept {
    for (int r = 0; r < n; ++r) {
        const __m512 step = _mm512_set1_ps(pass.step[r]);
        const __m512 constant = _mm512_set1_ps(constants != nullptr ? constants[r] : 0.0f);
        float* out = a.scores + std::ptrdiff_t(r0 + r) * kPage;
        unroll<4>([&](auto j) {
            const __m512 x = sums_of(s, r, j.value * 16);
            float* at = out + j.value * 16;
            const __m512 score = _mm512_fmadd_ps(x, step, constant);
            _mm512_storeu_ps(at, add ? _mm512_add_ps(_mm512_loadu_ps(at), score) : score);
        });
    }
}

// Over a block of that layout.
template <int kBits>
void qk_uniform(const QkArgs& a, const BlockLayout& l) noexcept {
    const int length = formats::round_up(a.keys.head_dim, 16);
    const int limit = formats::q16_limit(kBits, a.keys.head_dim);
    const __m512 noise = _mm512_set1_ps(formats::score_noise(kBits, a.keys.head_dim)),
                 allowed = _mm512_set1_ps(formats::kScoreNoiseAllowed);
    Integers s;
    place(s, a.scratch, length);
    load_parameters<kBits, true>(a.keys.data, a.keys.next, l, length, s);
    unpack_keys<kBits>(a.keys.data, a.keys.next, l, s.codes);
    // Rows of the last tile beyond dim / 4 hold whatever the scratch held: their integers are 0.
    const int n_steps = whole_steps(length) / kStep;
    const TilesOfThread tiles;
    for (int r = 0; r < a.n_rows; r += kTileRows) {
        const int n = a.n_rows - r < kTileRows ? a.n_rows - r : kTileRows;
        const bool rest =
            fold<true>(a.q + r * a.q_stride, a.q_stride, n, length, limit, s, [&](__m512 step, __m512) {
                return unsigned(_mm512_cmp_ps_mask(_mm512_mul_ps(step, noise), allowed, _CMP_GT_OQ));
            });
        multiply(s.first, n_steps, s.codes, 4 * kPage, kPage / 16, s);
        write_scores(a, s, s.first, s.constant, r, n, a.accumulate);
        if (rest) {
            multiply(s.rest, n_steps, s.codes, 4 * kPage, kPage / 16, s);
            write_scores(a, s, s.rest, nullptr, r, n, true);
        }
    }
}

template <int kBits>
void qk_tier(const QkArgs& a) noexcept {
    qk_uniform<kBits>(a, formats::block_layout_of_tier(kBits, a.keys.head_dim));
}
constexpr TierQk kTierQk = {qk_tier<2>, qk_tier<3>, qk_tier<4>, qk_tier<6>, avx2::fp16_to_fp32};

template <int kBits>
void qk_cold(const QkArgs& a) noexcept {
    if (formats::is_tiered(true, kBits, a.keys.head_dim)) {
        qk_tiered(a, kTierQk);
    } else {
        qk_uniform<kBits>(a, formats::block_layout(true, kBits, a.keys.head_dim));
    }
}

}  // namespace

#define MIXED_KV_DEFINE_FORMAT(name, bits)                                               \
    void qk_##name##_amx(const QkArgs& args) noexcept {                                  \
        args.n_rows < kMinRows ? avx512::qk_##name##_avx512(args) : qk_cold<bits>(args); \
    }
MIXED_KV_FOR_EACH_COLD_FORMAT(MIXED_KV_DEFINE_FORMAT)

}  // namespace mixed_kv::kernels::amx
