// qk over cold pages with the integer scheme of src/kernels/scalar/cold.cpp.

#include "formats/format_list.h"
#include "kernels/avx2/avx2.h"
#include "kernels/avx512/avx512.h"
#include "kernels/avx512/codes.h"
#include "kernels/avx512/fold.h"
#include "kernels/avx512/sums.h"
#include "kernels/tiered_keys.h"

namespace mixed_kv::kernels::avx512 {
namespace {

// Scores of kRows rows for tokens 16 kFirst.. + 16 kVectors - 1; add: on top of what is there.
template <int kBits, int kRows, int kFirst, int kVectors>
__attribute__((noinline)) void qk_tile(const QkArgs& a, const BlockLayout& l, const Pass& pass, int length,
                                       int r0, bool add, Ahead& page_ahead) noexcept {
    Ahead ahead = page_ahead;
    const int n_groups = l.dim / 4;
    const std::byte* parts = pass.parts;
    Sums<kRows, kVectors> sum;
    clear<kRows, kVectors>(sum);
    for (int g = 0; g < n_groups; ++g, parts += 8) {
        ahead.step<lines_per_step(kBits, kVectors)>();
        __m512i codes[kVectors];
        unroll<kVectors>([&](auto j) {
            codes[j.value] = key_codes<kBits, kFirst + decltype(j)::value>(a.keys.data, l, g);
        });
        unroll<kRows>([&](auto r) {
            unroll<kVectors>([&](auto j) {
                add_products(sum[r.value][j.value], codes[j.value],
                             parts + std::ptrdiff_t(2) * r.value * length);
            });
        });
    }
    page_ahead = ahead;
    unroll<kRows>([&](auto row) {
        constexpr int r = decltype(row)::value;
        const __m512 step = _mm512_set1_ps(pass.step[r]), constant = _mm512_set1_ps(pass.constant[r]);
        unroll<kVectors>([&](auto j) {
            constexpr int kJ = decltype(j)::value;
            Sum s = sum[r][kJ];
            if constexpr (key_contains_next(kBits, kFirst + kJ)) {
                s.high -= sum[r][kJ + 1].high;
                s.low -= sum[r][kJ + 1].low;
            }
            const __m512 x = _mm512_cvtepi32_ps(whole<key_shift(kBits, kFirst + kJ)>(s, pass.start[r]));
            float* out = a.scores + (r0 + r) * kPage + (kFirst + kJ) * 16;
            const __m512 score = _mm512_fmadd_ps(x, step, constant);
            _mm512_storeu_ps(out, add ? _mm512_add_ps(_mm512_loadu_ps(out), score) : score);
        });
    });
}

// One pass of qk over rows r0 .. r0 + kRows - 1.
template <int kBits, int kRows>
inline void qk_rows(const QkArgs& a, const BlockLayout& l, const Pass& pass, int length, int r0, bool add,
                    Ahead& ahead) noexcept {
    if constexpr (kRows <= 2) {
        qk_tile<kBits, kRows, 0, 4>(a, l, pass, length, r0, add, ahead);
    } else {
        qk_tile<kBits, kRows, 0, 2>(a, l, pass, length, r0, add, ahead);
        qk_tile<kBits, kRows, 2, 2>(a, l, pass, length, r0, add, ahead);
    }
}

// Over a block of that layout, whose scales have the form kForm.
template <int kBits, formats::ScaleForm kForm>
void qk_uniform(const QkArgs& a, const BlockLayout& l) noexcept {
    const int length = padded(a.keys.head_dim);
    const int limit = formats::q16_limit(kBits, a.keys.head_dim);
    const float noise = formats::score_noise(kBits, a.keys.head_dim);
    auto* scaled = reinterpret_cast<float*>(a.scratch);
    Pass pass;
    pass.parts = integers(scaled, length);
    prefetch_parameters(a.keys.next, l);
    Ahead ahead(a.keys.next, l.byte_plane, l.bytes, a.keys.data);
    for_row_tiles(a.n_rows, [&](int r, auto rows) {
        constexpr int kRows = decltype(rows)::value;
        fold<kBits, true, kForm, kRows>(a.keys.data, l, a.q + r * a.q_stride, a.q_stride, length, limit,
                                        scaled, pass);
        const __m128 error = _mm_mul_ps(_mm_load_ps(pass.step), _mm_set1_ps(noise));
        const unsigned rest = static_cast<unsigned>(_mm_movemask_ps(
                                  _mm_cmpgt_ps(error, _mm_set1_ps(formats::kScoreNoiseAllowed)))) &
                              ((1u << kRows) - 1u);
        qk_rows<kBits, kRows>(a, l, pass, length, r, a.accumulate, ahead);
        if (rest != 0) {
            fold_rest<kBits, kRows>(scaled, length, limit, rest, pass);
            qk_rows<kBits, kRows>(a, l, pass, length, r, true, ahead);
        }
    });
}

template <int kBits>
void qk_tier(const QkArgs& a) noexcept {
    qk_uniform<kBits, formats::ScaleForm::byte>(a, formats::block_layout_of_tier(kBits, a.keys.head_dim));
}
constexpr TierQk kTierQk = {qk_tier<2>, qk_tier<3>, qk_tier<4>, qk_tier<6>, avx2::fp16_to_fp32};

template <int kBits>
void qk_cold(const QkArgs& a) noexcept {
    constexpr auto kForm = formats::is_narrow(kBits) ? formats::ScaleForm::byte : formats::ScaleForm::half;
    if (formats::is_tiered(true, kBits, a.keys.head_dim)) {
        qk_tiered(a, kTierQk);
    } else {
        qk_uniform<kBits, kForm>(a, formats::block_layout(true, kBits, a.keys.head_dim));
    }
}

}  // namespace

#define MIXED_KV_DEFINE_FORMAT(name, bits) \
    void qk_##name##_avx512(const QkArgs& args) noexcept { qk_cold<bits>(args); }
MIXED_KV_FOR_EACH_COLD_FORMAT(MIXED_KV_DEFINE_FORMAT)

}  // namespace mixed_kv::kernels::avx512
