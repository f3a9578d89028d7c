#pragma once

#include "kernels/avx2/avx2.h"
#include "kernels/avx2/codes.h"
#include "kernels/avx2/cold_block_rows.h"
#include "kernels/avx2/fold.h"
#include "kernels/tiered_keys.h"

// qk over cold pages with the integer scheme of src/kernels/scalar/cold.cpp: the text of the AVX2 and the
// AVX-VNNI set.

namespace mixed_kv::kernels::avx2 {
namespace {

// Scores of kRows rows for half kHalf of the page's tokens, vectors j0 .. j0 + kVectors - 1 of it; add: on
// top of what is there.
template <int kBits, int kHalf, int kRows, int kVectors>
inline __attribute__((always_inline)) void qk_tile(const QkArgs& a, const BlockLayout& l, const Pass& pass,
                                                   int length, int r0, int j0, bool add,
                                                   Ahead& ahead) noexcept {
    const std::ptrdiff_t n_groups = l.dim / 4;
    const std::ptrdiff_t stride = length;
    const std::int16_t* q16 = pass.q16;
    __m256i total[kRows][kVectors][2];
    unroll<kRows>([&](auto r) {
        unroll<kVectors>([&](auto j) {
            total[r.value][j.value][0] = total[r.value][j.value][1] = _mm256_set1_epi32(pass.start[r.value]);
        });
    });
    for (std::ptrdiff_t g = 0; g < n_groups;) {
        const std::ptrdiff_t end =
            n_groups - g < key_groups_at_once(kBits) ? n_groups : g + key_groups_at_once(kBits);
        __m256i sum[kRows][kVectors][2];
        unroll<kRows>([&](auto r) {
            unroll<kVectors>([&](auto j) {
                sum[r.value][j.value][0] = sum[r.value][j.value][1] = _mm256_setzero_si256();
            });
        });
        for (; g < end; ++g, q16 += 4) {
            ahead.step_lines<(8 * kBits * kVectors + 63) / 64>();
            unroll<kVectors>([&](auto j) {
                const WordsPair codes =
                    key_words<kBits, kHalf>(key_planes(a.keys.data, l, g, kHalf, j0 + j.value));
                unroll<kRows>([&](auto r) {
                    const __m256i q = broadcast_pair(q16 + r.value * stride);
                    __m256i(&s)[2] = sum[r.value][j.value];
                    s[0] = add_products(s[0], codes.a.even, q);
                    s[1] = add_products(s[1], codes.b.even, q);
                });
                unroll<kRows>([&](auto r) {
                    const __m256i q = broadcast_pair(q16 + r.value * stride + 2);
                    __m256i(&s)[2] = sum[r.value][j.value];
                    s[0] = add_products(s[0], codes.a.odd, q);
                    s[1] = add_products(s[1], codes.b.odd, q);
                });
            });
        }
        unroll<kRows>([&](auto r) {
            unroll<kVectors>([&](auto j) {
                __m256i x = sum[r.value][j.value][0], y = sum[r.value][j.value][1];
                if constexpr (key_a_contains_b(kBits)) x = _mm256_sub_epi32(x, y);
                if constexpr (key_shift(kBits, kHalf, 0) != 0)
                    x = _mm256_srai_epi32(x, key_shift(kBits, kHalf, 0));
                if constexpr (key_shift(kBits, kHalf, 1) != 0)
                    y = _mm256_srai_epi32(y, key_shift(kBits, kHalf, 1));
                total[r.value][j.value][0] = _mm256_add_epi32(total[r.value][j.value][0], x);
                total[r.value][j.value][1] = _mm256_add_epi32(total[r.value][j.value][1], y);
            });
        });
    }
    unroll<kRows>([&](auto row) {
        constexpr int r = decltype(row)::value;
        const __m256 step = _mm256_set1_ps(pass.step[r]), constant = _mm256_set1_ps(pass.constant[r]);
        unroll<kVectors>([&](auto j) {
            float* out = a.scores + (r0 + r) * kPage + kHalf * 32 + (j0 + j.value) * 8;
            __m256 low = _mm256_fmadd_ps(_mm256_cvtepi32_ps(total[r][j.value][0]), step, constant);
            __m256 high = _mm256_fmadd_ps(_mm256_cvtepi32_ps(total[r][j.value][1]), step, constant);
            if (add) {
                low = _mm256_add_ps(_mm256_loadu_ps(out), low);
                high = _mm256_add_ps(_mm256_loadu_ps(out + 16), high);
            }
            _mm256_storeu_ps(out, low);
            _mm256_storeu_ps(out + 16, high);
        });
    });
}

// One pass of qk over rows r0 .. r0 + kRows - 1. Out of line, so that its tiles have the registers to
// themselves; the tiles are inlined, because calling each costs attention 2 % at head_dim 64.
template <int kBits, int kRows>
__attribute__((noinline)) void qk_rows(const QkArgs& a, const BlockLayout& l, const Pass& pass, int length,
                                       int r0, bool add, Ahead& page_ahead) noexcept {
    Ahead ahead = page_ahead;
    constexpr int kVectors = kRows <= 2 ? 2 : 1;
    for (int j = 0; j < 2; j += kVectors) {
        qk_tile<kBits, 0, kRows, kVectors>(a, l, pass, length, r0, j, add, ahead);
        qk_tile<kBits, 1, kRows, kVectors>(a, l, pass, length, r0, j, add, ahead);
    }
    page_ahead = ahead;
}

// All of qk for many rows, the page unpacked once.
template <int kBits, formats::ScaleForm kForm>
inline void qk_unpacked(const QkArgs& a, const BlockLayout& l, int limit, float noise) noexcept {
    const int length = padded(a.keys.head_dim);
    const UnpackedPage page = place_unpacked(a.scratch, kPage, length);
    prefetch_parameters(a.keys.next, l);
    for (int c = 0; c < length; c += 8) {
        const __m256 scale = load_scales<kForm>(a.keys.data, c);
        _mm256_storeu_ps(page.scale + c, scale);
        _mm256_storeu_ps(page.offset + c, centre_offset<kBits>(a.keys.data, l, scale, c));
    }
    unpack_keys<kBits>(a.keys, l, page, Ahead(a.keys.next, l.byte_plane, l.bytes));
    qk_blocks(a, page, limit, noise);
}

// Over a block of that layout, whose scales have the form kForm.
template <int kBits, formats::ScaleForm kForm>
void qk_uniform(const QkArgs& a, const BlockLayout& l) noexcept {
    const int length = padded(a.keys.head_dim);
    const int limit = formats::q16_limit(kBits, a.keys.head_dim);
    const float noise = formats::score_noise(kBits, a.keys.head_dim);
    if (a.n_rows >= kUnpackRows) {
        qk_unpacked<kBits, kForm>(a, l, limit, noise);
        return;
    }
    auto* scaled = reinterpret_cast<float*>(a.scratch);
    Pass pass;
    pass.q16 = integers(scaled, length);
    prefetch_parameters(a.keys.next, l);
    Ahead ahead(a.keys.next, l.byte_plane, l.bytes);
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
constexpr TierQk kTierQk = {qk_tier<2>, qk_tier<3>, qk_tier<4>, qk_tier<6>, fp16_to_fp32};

template <int kBits>
void qk_cold(const QkArgs& a) noexcept {
    constexpr auto kForm = formats::is_narrow(kBits) ? formats::ScaleForm::byte : formats::ScaleForm::half;
    if (formats::is_tiered(true, kBits, a.keys.head_dim)) {
        // As many rows at a time as the scratch holds permuted.
        QkArgs some = a;
        for (int r = 0; r < a.n_rows; r += some.n_rows) {
            some.n_rows = a.n_rows - r < kMaxDecodeRows ? a.n_rows - r : kMaxDecodeRows;
            some.q = a.q + r * a.q_stride;
            some.scores = a.scores + std::ptrdiff_t(r) * kPage;
            qk_tiered(some, kTierQk);
            some.keys.next = nullptr;  // fetched now
        }
    } else {
        qk_uniform<kBits, kForm>(a, formats::block_layout(true, kBits, a.keys.head_dim));
    }
}

}  // namespace
}  // namespace mixed_kv::kernels::avx2
