// FP16 pages and many query rows: a page is converted to float once, in panels that stay in L1, and
// multiplied as matrices. Lanes of the result are tokens (keys) or channels (values), so that nothing is
// summed over lanes.

#include "kernels/avx512/avx512.h"
#include "kernels/avx512/lanes.h"

namespace mixed_kv::kernels::avx512 {
namespace {

constexpr int kPanelChannels = 64;  // of a panel: 16 KiB with 64 tokens

// Asks for bytes of the next page as this one's are converted.
inline void fetch_next(const PageData& page, int t, int c) noexcept {
    if (page.next != nullptr) prefetch(page.next + t * page.token_stride_bytes + std::ptrdiff_t(c) * 2);
}

// panel[channel][64 tokens] of n channels from c0 on; rounded up to 16 channels and tokens, which are 0.
inline void pack_keys(const PageData& keys, int c0, int n, float* panel) noexcept {
    for (int t0 = 0; t0 < keys.n_tokens; t0 += 16) {
        const int n_tokens = keys.n_tokens - t0 < 16 ? keys.n_tokens - t0 : 16;
        const std::byte* first = keys.data + t0 * keys.token_stride_bytes + std::ptrdiff_t(c0) * 2;
        for (int c = 0; c < n; c += 16) {
            const std::byte* from = first + std::ptrdiff_t(c) * 2;
            if (c % 32 == 0) {
                for (int t = t0; t < t0 + n_tokens; ++t) fetch_next(keys, t, c0 + c);
            }
            __m512 x[16];
            if (n_tokens == 16 && n - c >= 16) {
                unroll<16>(
                    [&](auto t) { x[t.value] = load_halves(from + t.value * keys.token_stride_bytes); });
            } else {
                const __mmask16 lanes = lane_mask(n - c < 16 ? n - c : 16);
                unroll<16>([&](auto t) {
                    x[t.value] = t.value < n_tokens
                                     ? load_halves(from + t.value * keys.token_stride_bytes, lanes)
                                     : _mm512_setzero_ps();
                });
            }
            transpose(x);
            unroll<16>([&](auto i) { _mm512_storeu_ps(panel + (c + i.value) * kPage + t0, x[i.value]); });
        }
    }
}

// panel[token][64 channels] of n channels from c0 on, rounded up to 16.
inline void pack_values(const PageData& values, int c0, int n, float* panel) noexcept {
    for (int t = 0; t < values.n_tokens; ++t, panel += kPanelChannels) {
        const std::byte* row = values.data + t * values.token_stride_bytes + std::ptrdiff_t(c0) * 2;
        for (int c = 0; c < n; c += 16) {
            if (c % 32 == 0) fetch_next(values, t, c0 + c);
            const std::byte* from = row + std::ptrdiff_t(c) * 2;
            _mm512_storeu_ps(panel + c,
                             n - c >= 16 ? load_halves(from) : load_halves(from, lane_mask(n - c)));
        }
    }
}

}  // namespace

void qk_f16_blocks(const QkArgs& a) noexcept {
    alignas(64) float panel[kPanelChannels * kPage];
    const int dim = a.keys.head_dim;
    for (int c = 0; c < dim; c += kPanelChannels) {
        const int n = dim - c < kPanelChannels ? dim - c : kPanelChannels;
        pack_keys(a.keys, c, n, panel);
        gemm({a.q + c, a.q_stride, panel, kPage, a.scores, kPage, a.n_rows, a.keys.n_tokens, n, c != 0});
    }
}

void pv_f16_blocks(const PvArgs& a) noexcept {
    alignas(64) float panel[kPage * kPanelChannels];
    const int dim = a.values.head_dim;
    for (int c = 0; c < dim; c += kPanelChannels) {
        const int n = dim - c < kPanelChannels ? dim - c : kPanelChannels;
        pack_values(a.values, c, n, panel);
        gemm({a.p, kPage, panel, kPanelChannels, a.o + c, a.o_stride, a.n_rows, n, a.values.n_tokens, true});
    }
}

}  // namespace mixed_kv::kernels::avx512
