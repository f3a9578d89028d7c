// FP16 pages: every half is converted once per tile of query rows, sums are float with FMA.

#include "kernels/avx2/avx2.h"
#include "kernels/avx2/simd.h"

namespace mixed_kv::kernels::avx2 {
namespace {

// Lane i of the result is the sum of v[i]'s lanes.
inline __m256 sum_each(const __m256 (&v)[8]) noexcept {
    const __m256 a = _mm256_hadd_ps(_mm256_hadd_ps(v[0], v[1]), _mm256_hadd_ps(v[2], v[3]));
    const __m256 b = _mm256_hadd_ps(_mm256_hadd_ps(v[4], v[5]), _mm256_hadd_ps(v[6], v[7]));
    return _mm256_add_ps(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31));
}

// Scores of tokens t0 .. t0 + kTokens - 1 for rows r0 .. r0 + kRows - 1; kRows * kTokens <= 8.
template <int kRows, int kTokens>
inline void qk_tile(const QkArgs& a, int r0, int t0) noexcept {
    static_assert(kRows * kTokens <= 8);
    __m256 sum[8];
    for (__m256& s : sum) {
        s = _mm256_setzero_ps();
    }
    const std::byte* keys = a.keys.data + t0 * a.keys.token_stride_bytes;
    const float* q = a.q + r0 * a.q_stride;
    int c = 0;
    for (; c + 8 <= a.keys.head_dim; c += 8) {
        __m256 k[kTokens];
        for (int t = 0; t < kTokens; ++t) {
            k[t] = load_halves(keys + t * a.keys.token_stride_bytes + std::ptrdiff_t(c) * 2);
        }
        for (int r = 0; r < kRows; ++r) {
            const __m256 x = _mm256_loadu_ps(q + r * a.q_stride + c);
            for (int t = 0; t < kTokens; ++t) {
                sum[r * kTokens + t] = _mm256_fmadd_ps(x, k[t], sum[r * kTokens + t]);
            }
        }
    }
    if (c < a.keys.head_dim) {
        for (int t = 0; t < kTokens; ++t) {
            const __m256 k = load_halves(keys + t * a.keys.token_stride_bytes + std::ptrdiff_t(c) * 2,
                                         a.keys.head_dim - c);
            for (int r = 0; r < kRows; ++r) {
                sum[r * kTokens + t] =
                    _mm256_fmadd_ps(_mm256_loadu_ps(q + r * a.q_stride + c), k, sum[r * kTokens + t]);
            }
        }
    }
    alignas(32) float sums[8];
    _mm256_store_ps(sums, sum_each(sum));
    for (int r = 0; r < kRows; ++r) {
        for (int t = 0; t < kTokens; ++t) {
            a.scores[(r0 + r) * kPage + t0 + t] = sums[r * kTokens + t];
        }
    }
}

// Tokens that pv takes at a time over all channels: strips of a whole page are no stream that the hardware
// follows.
constexpr int kChunk = 16;

// Tokens [t0, t1), kVectors vectors of 8 channels from c on, the last of them n < 8 wide if kPartial.
template <int kRows, int kVectors, bool kPartial>
inline void pv_tile(const PvArgs& a, int r0, int t0, int t1, int c, int n = 8) noexcept {
    __m256 sum[kRows][kVectors];
    for (int r = 0; r < kRows; ++r) {
        for (int v = 0; v < kVectors; ++v) {
            sum[r][v] = _mm256_setzero_ps();
        }
    }
    const float* p = a.p + r0 * kPage;
    const std::byte* row = a.values.data + t0 * a.values.token_stride_bytes + std::ptrdiff_t(c) * 2;
    const std::ptrdiff_t ahead = kChunk * a.values.token_stride_bytes;
    for (int t = t0; t < t1; ++t, row += a.values.token_stride_bytes) {
        _mm_prefetch(reinterpret_cast<const char*>(row + ahead),
                     _MM_HINT_T0);  // beyond the page at its end: no fault
        __m256 x[kVectors];
        for (int v = 0; v < kVectors; ++v) {
            x[v] = kPartial && v == kVectors - 1 ? load_halves(row + v * 16, n) : load_halves(row + v * 16);
        }
        for (int r = 0; r < kRows; ++r) {
            const __m256 weight = _mm256_broadcast_ss(p + r * kPage + t);
            for (int v = 0; v < kVectors; ++v) {
                sum[r][v] = _mm256_fmadd_ps(weight, x[v], sum[r][v]);
            }
        }
    }
    for (int r = 0; r < kRows; ++r) {
        float* o = a.o + (r0 + r) * a.o_stride + c;  // the padding of o takes the lanes beyond head_dim
        for (int v = 0; v < kVectors; ++v) {
            _mm256_storeu_ps(o + v * 8, _mm256_add_ps(_mm256_loadu_ps(o + v * 8), sum[r][v]));
        }
    }
}

}  // namespace

void qk_f16(const QkArgs& a) noexcept {
    // Token tiles outside: each key is converted for all rows while it is in L1.
    int t = 0;
    for (; t + 8 <= a.keys.n_tokens; t += 8) {
        for_row_tiles(a.n_rows, [&](int r, auto rows) {
            constexpr int kRows = decltype(rows)::value;
            constexpr int kTokens = kRows == 1 ? 8 : kRows == 2 ? 4 : 2;
            for (int i = 0; i < 8; i += kTokens) {
                qk_tile<kRows, kTokens>(a, r, t + i);
            }
        });
    }
    for (; t < a.keys.n_tokens; ++t) {
        for_row_tiles(a.n_rows, [&](int r, auto rows) { qk_tile<decltype(rows)::value, 1>(a, r, t); });
    }
}

void pv_f16(const PvArgs& a) noexcept {
    const int dim = a.values.head_dim;
    for (int t0 = 0; t0 < a.values.n_tokens; t0 += kChunk) {
        const int t1 = t0 + kChunk < a.values.n_tokens ? t0 + kChunk : a.values.n_tokens;
        for_row_tiles(a.n_rows, [&](int r, auto rows) {
            constexpr int kRows = decltype(rows)::value;
            constexpr int kVectors = kRows <= 2 ? 4 : 2;
            int c = 0;
            for (; c + kVectors * 8 <= dim; c += kVectors * 8) {
                pv_tile<kRows, kVectors, false>(a, r, t0, t1, c);
            }
            for (; c + 8 <= dim; c += 8) {
                pv_tile<kRows, 1, false>(a, r, t0, t1, c);
            }
            if (c < dim) {
                pv_tile<kRows, 1, true>(a, r, t0, t1, c, dim - c);
            }
        });
    }
}

void decode_f16(const DecodeArgs& a) noexcept {
    const int dim = a.page.head_dim;
    for (int t = 0; t < kPage; t += 8) {
        for (int c = 0; c < dim; c += 8) {
            const int n = dim - c < 8 ? dim - c : 8;
            __m256 x[8];
            for (int i = 0; i < 8; ++i) {
                const std::byte* row =
                    a.page.data + (t + i) * a.page.token_stride_bytes + std::ptrdiff_t(c) * 2;
                x[i] = t + i >= a.page.n_tokens ? _mm256_setzero_ps()
                       : n == 8                 ? load_halves(row)
                                                : load_halves(row, n);
            }
            if (a.transposed) {
                transpose(x);
                for (int i = 0; i < n; ++i) {
                    _mm256_storeu_ps(a.out + (c + i) * a.out_stride + t, x[i]);
                }
            } else {
                for (int i = 0; i < 8; ++i) {
                    _mm256_maskstore_ps(a.out + (t + i) * a.out_stride + c, lane_mask(n), x[i]);
                }
            }
        }
    }
}

}  // namespace mixed_kv::kernels::avx2
