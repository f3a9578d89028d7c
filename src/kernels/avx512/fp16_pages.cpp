// FP16 pages: every half is converted once per tile of 4 query rows, sums are float with FMA. A page is
// walked 16 tokens at a time; meanwhile the next 16, or the next page's first, are fetched.

#include "kernels/avx512/avx512.h"
#include "kernels/avx512/lanes.h"

namespace mixed_kv::kernels::avx512 {
namespace {

constexpr int kChunk = 16;  // tokens

// Rows to fetch while a chunk is computed: the first of them; null where there are none.
inline const std::byte* rows_ahead(const PageData& page, int t0) noexcept {
    return t0 + kChunk < page.n_tokens ? page.data + (t0 + kChunk) * page.token_stride_bytes : page.next;
}

// Scores of tokens t0 .. t0 + kTokens - 1 for rows r0 .. r0 + kRows - 1; kRows * kTokens <= 16. ahead: null,
// or rows to fetch.
template <int kRows, int kTokens>
inline void qk_tile(const QkArgs& a, int r0, int t0, const std::byte* ahead) noexcept {
    static_assert(kRows * kTokens <= 16);
    const std::ptrdiff_t stride = a.keys.token_stride_bytes;
    const std::byte* keys = a.keys.data + t0 * stride;
    const float* q = a.q + r0 * a.q_stride;
    const int dim = a.keys.head_dim;
    __m512 sum[16];
    unroll<16>([&](auto i) { sum[i.value] = _mm512_setzero_ps(); });
    const auto step = [&](int c, auto&& load) {
        __m512 k[kTokens];
        unroll<kTokens>([&](auto t) { k[t.value] = load(keys + t.value * stride + std::ptrdiff_t(c) * 2); });
        unroll<kRows>([&](auto r) {
            const __m512 x = _mm512_loadu_ps(q + r.value * a.q_stride + c);
            unroll<kTokens>([&](auto t) {
                constexpr int i = decltype(r)::value * kTokens + decltype(t)::value;
                sum[i] = _mm512_fmadd_ps(x, k[t.value], sum[i]);
            });
        });
    };
    int c = 0;
    for (; c + 16 <= dim; c += 16) {
        if (ahead != nullptr && c % 32 == 0) {
            for (int t = 0; t < kTokens; ++t) {
                prefetch(ahead + t * stride + std::ptrdiff_t(c) * 2);
            }
        }
        step(c, [](const std::byte* p) { return load_halves(p); });
    }
    if (c < dim) {
        const __mmask16 lanes = lane_mask(dim - c);
        step(c, [lanes](const std::byte* p) { return load_halves(p, lanes); });
    }
    alignas(64) float sums[16];
    _mm512_store_ps(sums, sum_each(sum));
    for (int r = 0; r < kRows; ++r) {
        std::memcpy(a.scores + (r0 + r) * kPage + t0, sums + r * kTokens, kTokens * sizeof(float));
    }
}

// Tokens [t0, t1), kVectors vectors of 16 channels from c on, the last of them `lanes` wide if kPartial.
template <int kRows, int kVectors, bool kPartial>
inline void pv_tile(const PvArgs& a, int r0, int t0, int t1, int c, const std::byte* ahead,
                    __mmask16 lanes = 0xffff) noexcept {
    __m512 sum[kRows][kVectors];
    unroll<kRows>(
        [&](auto r) { unroll<kVectors>([&](auto v) { sum[r.value][v.value] = _mm512_setzero_ps(); }); });
    const std::ptrdiff_t stride = a.values.token_stride_bytes;
    const float* p = a.p + r0 * kPage;
    const std::byte* row = a.values.data + t0 * stride + std::ptrdiff_t(c) * 2;
    for (int t = t0; t < t1; ++t, row += stride) {
        if (ahead != nullptr) {
            for (int v = 0; v < kVectors; v += 2) {
                prefetch(ahead + (t - t0) * stride + std::ptrdiff_t(c) * 2 + v * 32);
            }
        }
        __m512 x[kVectors];
        unroll<kVectors>([&](auto v) {
            const std::byte* from = row + v.value * 32;
            x[v.value] = kPartial && v.value == kVectors - 1 ? load_halves(from, lanes) : load_halves(from);
        });
        unroll<kRows>([&](auto r) {
            const __m512 weight = _mm512_set1_ps(p[r.value * kPage + t]);
            unroll<kVectors>([&](auto v) {
                sum[r.value][v.value] = _mm512_fmadd_ps(weight, x[v.value], sum[r.value][v.value]);
            });
        });
    }
    unroll<kRows>([&](auto r) {
        float* o = a.o + (r0 + r.value) * a.o_stride + c;  // its padding takes the lanes beyond head_dim
        unroll<kVectors>([&](auto v) {
            _mm512_storeu_ps(o + v.value * 16,
                             _mm512_add_ps(_mm512_loadu_ps(o + v.value * 16), sum[r.value][v.value]));
        });
    });
}

}  // namespace

void qk_f16(const QkArgs& a) noexcept {
    if (a.n_rows >= kBlockRows && a.keys.n_tokens >= kBlockKeys) {
        qk_f16_blocks(a);
        return;
    }
    // Token tiles outside: each key is converted for all rows while it is in L1.
    int t = 0;
    for (; t + kChunk <= a.keys.n_tokens; t += kChunk) {
        const std::byte* ahead = rows_ahead(a.keys, t);
        for_row_tiles(a.n_rows, [&](int r, auto rows) {
            constexpr int kRows = decltype(rows)::value;
            constexpr int kTokens = kRows == 1 ? 16 : kRows == 2 ? 8 : 4;
            for (int i = 0; i < kChunk; i += kTokens) {
                qk_tile<kRows, kTokens>(
                    a, r, t + i,
                    r == 0 && ahead != nullptr ? ahead + i * a.keys.token_stride_bytes : nullptr);
            }
        });
    }
    for (; t < a.keys.n_tokens; ++t) {
        for_row_tiles(a.n_rows,
                      [&](int r, auto rows) { qk_tile<decltype(rows)::value, 1>(a, r, t, nullptr); });
    }
}

void pv_f16(const PvArgs& a) noexcept {
    if (a.n_rows >= kBlockRows) {
        pv_f16_blocks(a);
        return;
    }
    const int dim = a.values.head_dim;
    for (int t0 = 0; t0 < a.values.n_tokens; t0 += kChunk) {
        const int t1 = t0 + kChunk < a.values.n_tokens ? t0 + kChunk : a.values.n_tokens;
        const std::byte* rows_next = rows_ahead(a.values, t0);
        for_row_tiles(a.n_rows, [&](int r, auto rows) {
            constexpr int kRows = decltype(rows)::value;
            constexpr int kVectors = kRows == 1 ? 8 : 4;
            const std::byte* ahead = r == 0 ? rows_next : nullptr;
            int c = 0;
            for (; c + kVectors * 16 <= dim; c += kVectors * 16) {
                pv_tile<kRows, kVectors, false>(a, r, t0, t1, c, ahead);
            }
            for (; c + 16 <= dim; c += 16) {
                pv_tile<kRows, 1, false>(a, r, t0, t1, c, ahead);
            }
            if (c < dim) {
                pv_tile<kRows, 1, true>(a, r, t0, t1, c, ahead, lane_mask(dim - c));
            }
        });
    }
}

}  // namespace mixed_kv::kernels::avx512
