// FP16 pages and many query rows: a page is converted to float once, in panels that stay in L1, and
// multiplied as matrices. Lanes of the result are tokens (keys) or channels (values), so that nothing is
// summed over lanes.

#include "kernels/avx2/fp16_pages.h"
#include "kernels/avx2/matrix_tile.h"

namespace mixed_kv::kernels::avx2 {
namespace {

constexpr int kPanel = 16;           // tokens (keys) or channels (values) of a panel: two vectors
constexpr int kPanelChannels = 128;  // of a panel of keys, at most: 8 KiB

// panel[channel][kPanel tokens] of channels c0 .. c0 + n - 1 and 16 tokens from t0 on; n may be rounded up to
// 8 in the panel.
inline void pack_keys(const PageData& keys, int t0, int c0, int n, std::ptrdiff_t to_next,
                      float* panel) noexcept {
    for (int t = 0; t < kPanel; t += 8) {
        const std::byte* first = keys.data + (t0 + t) * keys.token_stride_bytes;
        const std::byte* row = first + std::ptrdiff_t(c0) * 2;
        for (int c = 0; c < n; c += 8, row += 16) {
            // 8 channels' share of 8 rows: two lines.
            fetch(first, to_next + std::ptrdiff_t(c0 + c) * 16);
            fetch(first, to_next + std::ptrdiff_t(c0 + c) * 16 + 64);
            __m256 x[8];
            for (int i = 0; i < 8; ++i) {
                const std::byte* from = row + i * keys.token_stride_bytes;
                x[i] = n - c < 8 ? load_halves(from, n - c) : load_halves(from);
            }
            transpose(x);
            for (int i = 0; i < 8; ++i) {
                _mm256_store_ps(panel + (c + i) * kPanel + t, x[i]);
            }
        }
    }
}

// panel[token][kPanel channels] of channels c0 .. c0 + 15, zero from head_dim on.
inline void pack_values(const PageData& values, int c0, std::ptrdiff_t to_next, float* panel) noexcept {
    const std::byte* row = values.data + std::ptrdiff_t(c0) * 2;
    const int n = values.head_dim - c0;
    for (int t = 0; t < values.n_tokens; ++t, row += values.token_stride_bytes, panel += kPanel) {
        fetch(row, to_next);
        if (n >= kPanel) {
            _mm256_store_ps(panel, load_halves(row));
            _mm256_store_ps(panel + 8, load_halves(row + 16));
            continue;
        }
        _mm256_store_ps(panel, n >= 8 ? load_halves(row) : load_halves(row, n));
        _mm256_store_ps(panel + 8, n > 8 ? load_halves(row + 16, n - 8) : _mm256_setzero_ps());
    }
}

}  // namespace

int qk_f16_blocks(const QkArgs& a, std::ptrdiff_t to_next) noexcept {
    alignas(64) float panel[kPanelChannels * kPanel];
    const int dim = a.keys.head_dim;
    int t = 0;
    for (; t + kPanel <= a.keys.n_tokens; t += kPanel) {
        for (int c = 0; c < dim; c += kPanelChannels) {
            const int n = dim - c < kPanelChannels ? dim - c : kPanelChannels;
            pack_keys(a.keys, t, c, n, to_next, panel);
            for_row_blocks(a.n_rows, [&](int r, auto rows) {
                matrix_tile<decltype(rows)::value>(
                    a.q + r * a.q_stride + c, a.q_stride, panel, kPanel, n,
                    StoreSums{a.scores + std::ptrdiff_t(r) * kPage + t, kPage, c != 0});
            });
        }
    }
    return t;
}

void pv_f16_blocks(const PvArgs& a, std::ptrdiff_t to_next) noexcept {
    alignas(64) float panel[kPage * kPanel];
    for (int c = 0; c < a.values.head_dim; c += kPanel) {
        pack_values(a.values, c, to_next, panel);
        for_row_blocks(a.n_rows, [&](int r, auto rows) {
            matrix_tile<decltype(rows)::value>(a.p + std::ptrdiff_t(r) * kPage, kPage, panel, kPanel,
                                               a.values.n_tokens,
                                               StoreSums{a.o + r * a.o_stride + c, a.o_stride, true});
        });
    }
}

}  // namespace mixed_kv::kernels::avx2
