// FP16 pages: every half is converted once per tile of query rows, sums are float with FMA.
//
// A tile has 8 to 12 sums in registers: two FMAs start per cycle and each takes 4 cycles. The rows of a tile
// walk over the whole page, which stays in L1 for the next rows; meanwhile the first rows fetch the next
// page, because a page is too short a stream for the hardware, which stops at every 4 KiB.

#include "kernels/avx2/fp16_pages.h"
#include "kernels/avx2/registers.h"

namespace mixed_kv::kernels::avx2 {
namespace {

// Tokens of a tile of kRows query rows.
template <int kRows>
constexpr int kTileTokens = kRows == 1   ? 8
                            : kRows == 2 ? 4
                                         : 3;

// Scores of kTokens tokens from t on for kRows rows from r on, over the channels that fill whole vectors. A
// tile of 3 tokens also writes the score after its last one, which the next tile overwrites. Out of line:
// inlined into its loops, it loses registers to them.
template <int kRows, int kTokens>
__attribute__((noinline)) void qk_tile(const QkArgs& a, int r, int t, std::ptrdiff_t to_next) noexcept {
    __m256 sum[kRows][kTokens];
    unroll<kRows>(
        [&](auto i) { unroll<kTokens>([&](auto j) { sum[i.value][j.value] = _mm256_setzero_ps(); }); });
    const std::ptrdiff_t stride = a.keys.token_stride_bytes, q_stride = a.q_stride;
    const std::byte* keys = a.keys.data + t * stride;
    const float* q = a.q + r * q_stride;
    const int n = a.keys.head_dim & -8;
#pragma GCC unroll 4
    for (std::ptrdiff_t c = 0; c < n; c += 8) {
        fetch(keys, to_next + c * 2 * kTokens);
        __m256 k[kTokens];
        unroll<kTokens>([&](auto j) { k[j.value] = load_halves(keys + j.value * stride + c * 2); });
        unroll<kRows>([&](auto i) {
            const __m256 x = in_register(_mm256_loadu_ps(q + i.value * q_stride + c));
            unroll<kTokens>([&](auto j) {
                sum[i.value][j.value] = _mm256_fmadd_ps(x, k[j.value], sum[i.value][j.value]);
            });
        });
    }
    float* out = a.scores + std::ptrdiff_t(r) * kPage + t;
    unroll<kRows>([&](auto i) {
        constexpr int row = decltype(i)::value;
        if constexpr (kTokens == 1) {
            out[row * kPage] = horizontal_sum(sum[row][0]);
        } else if constexpr (kTokens == 3) {
            _mm_storeu_ps(out + row * kPage,
                          sum_each(sum[row][0], sum[row][1], sum[row][2], _mm256_setzero_ps()));
        } else {
            unroll<kTokens / 4>([&](auto quarter) {
                constexpr int j = 4 * decltype(quarter)::value;
                _mm_storeu_ps(out + row * kPage + j,
                              sum_each(sum[row][j], sum[row][j + 1], sum[row][j + 2], sum[row][j + 3]));
            });
        }
    });
}

template <int kRows>
inline void qk_rows(const QkArgs& a, int r, int t, std::ptrdiff_t to_next) noexcept {
    constexpr int kTokens = kTileTokens<kRows>, kWritten = (kTokens + 3) / 4 * 4;
    for (; t + kWritten <= a.keys.n_tokens; t += kTokens) {
        qk_tile<kRows, kTokens>(a, r, t, to_next);
    }
    for (; t < a.keys.n_tokens; ++t) {
        qk_tile<kRows, 1>(a, r, t, to_next);
    }
}

// Adds the last channels, those that fill no vector.
void qk_rest(const QkArgs& a, int t) noexcept {
    const int c = a.keys.head_dim & -8, n = a.keys.head_dim - c;
    for (; t < a.keys.n_tokens; ++t) {
        const __m256 k = load_halves(a.keys.data + t * a.keys.token_stride_bytes + std::ptrdiff_t(c) * 2, n);
        for (int r = 0; r < a.n_rows; ++r) {
            a.scores[r * kPage + t] +=
                horizontal_sum(_mm256_mul_ps(_mm256_loadu_ps(a.q + r * a.q_stride + c), k));
        }
    }
}

// Vectors of 8 channels in a tile of kRows query rows.
template <int kRows>
constexpr int kTileVectors = kRows == 1   ? 8
                             : kRows == 2 ? 4
                                          : 3;

// kVectors vectors of 8 channels from c on for kRows rows from r on. next: the next page's bytes, a tile's
// share of them after another's.
template <int kRows, int kVectors>
inline void pv_tile(const PvArgs& a, int r, int c, const std::byte* page, std::ptrdiff_t& next) noexcept {
    __m256 sum[kRows][kVectors];
    unroll<kRows>(
        [&](auto i) { unroll<kVectors>([&](auto j) { sum[i.value][j.value] = _mm256_setzero_ps(); }); });
    const std::ptrdiff_t stride = a.values.token_stride_bytes;
    const std::byte* row = page + std::ptrdiff_t(c) * 2;
    const float* p = a.p + std::ptrdiff_t(r) * kPage;
    for (const float* end = p + a.values.n_tokens; p < end; ++p, row += stride, next += kVectors * 16) {
        fetch(page, next);
        __m256 x[kVectors];
        unroll<kVectors>([&](auto j) { x[j.value] = load_halves(row + j.value * 16); });
        unroll<kRows>([&](auto i) {
            const __m256 weight = in_register(_mm256_broadcast_ss(p + i.value * kPage));
            unroll<kVectors>([&](auto j) {
                sum[i.value][j.value] = _mm256_fmadd_ps(weight, x[j.value], sum[i.value][j.value]);
            });
        });
    }
    unroll<kRows>([&](auto i) {
        unroll<kVectors>([&](auto j) {
            float* o = a.o + (r + i.value) * a.o_stride + c + j.value * 8;
            _mm256_storeu_ps(o, _mm256_add_ps(_mm256_loadu_ps(o), sum[i.value][j.value]));
        });
    });
}

template <int kRows>
inline void pv_rows(const PvArgs& a, int r, std::ptrdiff_t to_next) noexcept {
    constexpr int kVectors = kTileVectors<kRows>;
    const int n = a.values.head_dim & -8;
    std::ptrdiff_t next = to_next;
    int c = 0;
    // Four vectors are better left to two pairs than to three and one.
    for (; n - c >= kVectors * 8 && (kVectors != 3 || n - c != 32); c += kVectors * 8) {
        pv_tile<kRows, kVectors>(a, r, c, a.values.data, next);
    }
    for (; n - c >= 16; c += 16) {
        pv_tile<kRows, 2>(a, r, c, a.values.data, next);
    }
    if (c < n) {
        pv_tile<kRows, 1>(a, r, c, a.values.data, next);
    }
}

// The last channels, those that fill no vector. The padding of o takes the lanes beyond.
void pv_rest(const PvArgs& a) noexcept {
    const int c = a.values.head_dim & -8, n = a.values.head_dim - c;
    for (int r = 0; r < a.n_rows; ++r) {
        __m256 sum = _mm256_setzero_ps();
        for (int t = 0; t < a.values.n_tokens; ++t) {
            const __m256 x =
                load_halves(a.values.data + t * a.values.token_stride_bytes + std::ptrdiff_t(c) * 2, n);
            sum = _mm256_fmadd_ps(_mm256_broadcast_ss(a.p + r * kPage + t), x, sum);
        }
        float* o = a.o + r * a.o_stride + c;
        _mm256_storeu_ps(o, _mm256_add_ps(_mm256_loadu_ps(o), sum));
    }
}

}  // namespace

void qk_f16(const QkArgs& a) noexcept {
    const std::ptrdiff_t to_next = distance_to_next(a.keys);
    const int t = a.n_rows < kBlockRows ? 0 : qk_f16_blocks(a, to_next);
    if (t == a.keys.n_tokens) {
        return;
    }
    for_row_tiles(a.n_rows,
                  [&](int r, auto rows) { qk_rows<decltype(rows)::value>(a, r, t, r == 0 ? to_next : 0); });
    if (a.keys.head_dim % 8 != 0) {
        qk_rest(a, t);
    }
}

void pv_f16(const PvArgs& a) noexcept {
    const std::ptrdiff_t to_next = distance_to_next(a.values);
    if (a.n_rows >= kBlockRows) {
        pv_f16_blocks(a, to_next);
        return;
    }
    for_row_tiles(a.n_rows,
                  [&](int r, auto rows) { pv_rows<decltype(rows)::value>(a, r, r == 0 ? to_next : 0); });
    if (a.values.head_dim % 8 != 0) {
        pv_rest(a);
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
