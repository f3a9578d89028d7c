// FP16 pages: every half is converted once per tile of query rows, sums are float with FMA. For many query
// rows a page is converted once, in panels that stay in L1, and multiplied as matrices; lanes of the result
// are then tokens (keys) or channels (values), so that nothing is summed over lanes.

#include "kernels/neon/matrix_tile.h"
#include "kernels/neon/neon.h"

namespace mixed_kv::kernels::neon {
namespace {

using shared::Int;
using shared::unroll;
using Ahead = shared::Ahead<Lanes, true>;

struct EightHalves {
    float32x4_t low, high;
};

inline EightHalves load_eight(const std::byte* p) noexcept {
    const float16x8_t x = vreinterpretq_f16_u16(vld1q_u16(reinterpret_cast<const std::uint16_t*>(p)));
    return {vcvt_f32_f16(vget_low_f16(x)), vcvt_high_f32_f16(x)};
}

// The first n < 8, the rest 0.
inline EightHalves load_some(const std::byte* p, int n) noexcept {
    alignas(16) std::byte buffer[16] = {};
    std::memcpy(buffer, p, std::size_t(n) * 2);
    return load_eight(buffer);
}

const std::byte* row_of(const PageData& page, int t, int c) noexcept {
    return page.data + t * page.token_stride_bytes + std::ptrdiff_t(c) * 2;
}

// The next page is fetched where pages are contiguous.
Ahead fetch_next(const PageData& page, int n_tiles) noexcept {
    const std::ptrdiff_t row = std::ptrdiff_t(page.head_dim) * 2;
    const bool contiguous = page.token_stride_bytes == row;
    return {contiguous ? page.next : nullptr, 0, std::size_t(page.n_tokens * row), n_tiles};
}

// --- few query rows ----------------------------------------------------------------------------------------

// Scores of kTokens tokens from t on for kRows rows from r on.
template <int kRows, int kTokens>
__attribute__((noinline)) void qk_tile(const QkArgs& a, int r, int t) noexcept {
    float32x4_t sum[kRows][kTokens];
    unroll<kRows>(
        [&](auto i) { unroll<kTokens>([&](auto j) { sum[i.value][j.value] = vdupq_n_f32(0.0f); }); });
    const std::ptrdiff_t stride = a.keys.token_stride_bytes;
    const float* q = a.q + r * a.q_stride;
    const std::byte* keys = row_of(a.keys, t, 0);
    const int dim = a.keys.head_dim;
    const auto step = [&](int c, auto&& load_keys) {
        EightHalves k[kTokens];
        unroll<kTokens>(
            [&](auto j) { k[j.value] = load_keys(keys + j.value * stride + std::ptrdiff_t(c) * 2); });
        unroll<kRows>([&](auto i) {
            const float* at = q + i.value * a.q_stride + c;
            const float32x4_t low = vld1q_f32(at), high = vld1q_f32(at + 4);
            unroll<kTokens>([&](auto j) {
                float32x4_t& s = sum[i.value][j.value];
                s = vfmaq_f32(s, low, k[j.value].low);
                s = vfmaq_f32(s, high, k[j.value].high);
            });
        });
    };
    int c = 0;
    for (; c + 8 <= dim; c += 8) step(c, load_eight);
    if (c < dim) step(c, [&](const std::byte* p) { return load_some(p, dim - c); });
    unroll<kRows>([&](auto i) {
        float* out = a.scores + std::ptrdiff_t(r + i.value) * kPage + t;
        if constexpr (kTokens == 1) {
            out[0] = vaddvq_f32(sum[i.value][0]);
        } else {
            unroll<kTokens / 4>([&](auto quarter) {
                constexpr int j = 4 * decltype(quarter)::value;
                const auto& s = sum[i.value];
                vst1q_f32(out + j, Lanes::sum_each<4>({s[j], s[j + 1], s[j + 2], s[j + 3]}));
            });
        }
    });
}

template <int kRows>
constexpr int kTileTokens = kRows <= 2 ? 8 : 4;

// kVectors vectors of 4 channels from c on for kRows rows from r on.
template <int kRows, int kVectors>
__attribute__((noinline)) void pv_tile(const PvArgs& a, int r, int c) noexcept {
    float32x4_t sum[kRows][kVectors];
    unroll<kRows>(
        [&](auto i) { unroll<kVectors>([&](auto j) { sum[i.value][j.value] = vdupq_n_f32(0.0f); }); });
    const std::ptrdiff_t stride = a.values.token_stride_bytes;
    const std::byte* row = row_of(a.values, 0, c);
    const float* p = a.p + std::ptrdiff_t(r) * kPage;
    const auto load_row = [&](float32x4_t(&x)[kVectors]) {
        unroll<kVectors / 2>([&](auto j) {
            const EightHalves two = load_eight(row + j.value * 16);
            x[2 * j.value] = two.low, x[2 * j.value + 1] = two.high;
        });
        row += stride;
    };
    int t = 0;
    for (; t + 4 <= a.values.n_tokens; t += 4) {
        float32x4_t weight[kRows];
        unroll<kRows>([&](auto i) { weight[i.value] = vld1q_f32(p + i.value * kPage + t); });
        unroll<4>([&](auto lane) {
            constexpr int kLane = decltype(lane)::value;
            float32x4_t x[kVectors];
            load_row(x);
            unroll<kRows>([&](auto i) {
                unroll<kVectors>([&](auto j) {
                    float32x4_t& s = sum[i.value][j.value];
                    s = vfmaq_laneq_f32(s, x[j.value], weight[i.value], kLane);
                });
            });
        });
    }
    for (; t < a.values.n_tokens; ++t) {
        float32x4_t x[kVectors];
        load_row(x);
        unroll<kRows>([&](auto i) {
            unroll<kVectors>([&](auto j) {
                float32x4_t& s = sum[i.value][j.value];
                s = vfmaq_n_f32(s, x[j.value], p[i.value * kPage + t]);
            });
        });
    }
    unroll<kRows>([&](auto i) {
        unroll<kVectors>([&](auto j) {
            float* o = a.o + (r + i.value) * a.o_stride + c + j.value * 4;
            vst1q_f32(o, vaddq_f32(vld1q_f32(o), sum[i.value][j.value]));
        });
    });
}

// The last channels, fewer than 8, for one row.
void pv_rest(const PvArgs& a, int r, int c) noexcept {
    const int n = a.values.head_dim - c;
    float32x4_t low = vdupq_n_f32(0.0f), high = low;
    for (int t = 0; t < a.values.n_tokens; ++t) {
        const EightHalves x = load_some(row_of(a.values, t, c), n);
        const float p = a.p[std::ptrdiff_t(r) * kPage + t];
        low = vfmaq_n_f32(low, x.low, p);
        high = vfmaq_n_f32(high, x.high, p);
    }
    float sums[8];
    vst1q_f32(sums, low);
    vst1q_f32(sums + 4, high);
    for (int i = 0; i < n; ++i) a.o[r * a.o_stride + c + i] += sums[i];
}

// --- many query rows ---------------------------------------------------------------------------------------

// panel[channel][8 tokens] of n channels from c0 on and the tokens from t0 on, zero beyond the page's.
void pack_keys(const PageData& keys, int t0, int c0, int n, float* panel) noexcept {
    for (int t = 0; t < kPanelColumns; t += 4) {
        for (int c = 0; c < n; c += 8) {
            float32x4_t low[4], high[4];
            for (int i = 0; i < 4; ++i) {
                EightHalves x{vdupq_n_f32(0.0f), vdupq_n_f32(0.0f)};
                if (t0 + t + i < keys.n_tokens) {
                    const std::byte* row = row_of(keys, t0 + t + i, c0 + c);
                    x = n - c < 8 ? load_some(row, n - c) : load_eight(row);
                }
                low[i] = x.low, high[i] = x.high;
            }
            Lanes::transpose(low);
            Lanes::transpose(high);
            for (int i = 0; i < 4; ++i) {
                vst1q_f32(panel + (c + i) * kPanelColumns + t, low[i]);
                vst1q_f32(panel + (c + i + 4) * kPanelColumns + t, high[i]);
            }
        }
    }
}

void qk_blocks(const QkArgs& a) noexcept {
    alignas(64) float panel[kPanelRows * kPanelColumns];
    Ahead ahead = fetch_next(a.keys, kPage / kPanelColumns);
    for (int t = 0; t < a.keys.n_tokens; t += kPanelColumns) {
        const int n_tokens = a.keys.n_tokens - t < kPanelColumns ? a.keys.n_tokens - t : kPanelColumns;
        ahead.tile();
        for (int c = 0; c < a.keys.head_dim; c += kPanelRows) {
            const int n = a.keys.head_dim - c < kPanelRows ? a.keys.head_dim - c : kPanelRows;
            pack_keys(a.keys, t, c, n, panel);
            multiply_panel({a.q + c, a.q_stride, panel, n, a.scores + t, kPage, n_tokens, c != 0}, a.n_rows);
        }
    }
}

void pv_blocks(const PvArgs& a) noexcept {
    alignas(64) float panel[kPage * kPanelColumns];
    const int dim = a.values.head_dim;
    Ahead ahead = fetch_next(a.values, (dim + kPanelColumns - 1) / kPanelColumns);
    for (int c = 0; c < dim; c += kPanelColumns) {
        const int n = dim - c < kPanelColumns ? dim - c : kPanelColumns;
        ahead.tile();
        for (int t = 0; t < a.values.n_tokens; ++t) {
            const std::byte* row = row_of(a.values, t, c);
            const EightHalves x = n == kPanelColumns ? load_eight(row) : load_some(row, n);
            vst1q_f32(panel + t * kPanelColumns, x.low);
            vst1q_f32(panel + t * kPanelColumns + 4, x.high);
        }
        multiply_panel({a.p, kPage, panel, a.values.n_tokens, a.o + c, a.o_stride, n, true}, a.n_rows);
    }
}

}  // namespace

void qk_f16(const QkArgs& a) noexcept {
    if (a.n_rows >= shared::kUnpackRows) {
        qk_blocks(a);
        return;
    }
    Ahead ahead = fetch_next(a.keys, kPage / 8);
    shared::for_row_tiles<shared::kTileRows>(a.n_rows, [&](int r, auto rows) {
        constexpr int kRows = decltype(rows)::value, kTokens = kTileTokens<kRows>;
        int t = 0;
        for (; t + kTokens <= a.keys.n_tokens; t += kTokens) {
            if (t % 8 == 0) ahead.tile();
            qk_tile<kRows, kTokens>(a, r, t);
        }
        for (; t < a.keys.n_tokens; ++t) qk_tile<kRows, 1>(a, r, t);
    });
}

void pv_f16(const PvArgs& a) noexcept {
    if (a.n_rows >= shared::kUnpackRows) {
        pv_blocks(a);
        return;
    }
    const int dim = a.values.head_dim;
    Ahead ahead = fetch_next(a.values, (dim + 31) / 32);
    shared::for_row_tiles<shared::kTileRows>(a.n_rows, [&](int r, auto rows) {
        constexpr int kRows = decltype(rows)::value, kVectors = kRows <= 2 ? 8 : 4;
        int c = 0;
        for (; c + 4 * kVectors <= dim; c += 4 * kVectors) {
            if (c % 32 == 0) ahead.tile();
            pv_tile<kRows, kVectors>(a, r, c);
        }
        for (; c + 8 <= dim; c += 8) pv_tile<kRows, 2>(a, r, c);
        for (int i = 0; i < kRows && c < dim; ++i) pv_rest(a, r + i, c);
    });
}

void decode_f16(const DecodeArgs& a) noexcept {
    const int dim = a.page.head_dim;
    for (int t = 0; t < kPage; t += 4) {
        for (int c = 0; c < dim; c += 4) {
            const int n = dim - c < 4 ? dim - c : 4;
            float32x4_t x[4];
            for (int i = 0; i < 4; ++i) {
                const std::byte* row = row_of(a.page, t + i, c);
                x[i] = t + i >= a.page.n_tokens ? vdupq_n_f32(0.0f)
                       : n == 4                 ? Lanes::load_halves(row)
                                                : Lanes::load_halves(row, n);
            }
            if (a.transposed) {
                Lanes::transpose(x);
                for (int i = 0; i < n; ++i) vst1q_f32(a.out + (c + i) * a.out_stride + t, x[i]);
            } else {
                for (int i = 0; i < 4; ++i) Lanes::store(a.out + (t + i) * a.out_stride + c, x[i], n);
            }
        }
    }
}

}  // namespace mixed_kv::kernels::neon
