// FP16 pages for many query rows, on bfloat16 tiles without their accuracy: every number is the sum of two,
// x = high + low, high being x rounded to bfloat16 (8 bits) and low the rest, rounded alike. Of a binary16
// number, which has 11 bits, nothing is lost; of a float no more than 2^-16 of it. Products are high * high +
// low * high + high * low, in float; low * low, at most 2^-16 of the whole, is left out. So a product is off
// by at most 2^-15 of its magnitude, of either sign. KernelSet::product_error is that and what gemm's second
// rounded factor adds; tests/support/tolerance.cpp says what becomes of it in attention.

#include "formats/block_layout.h"
#include "kernels/amx/amx.h"
#include "kernels/amx/bf16.h"
#include "kernels/avx512/avx512.h"

namespace mixed_kv::kernels::amx {
namespace {

// Below, splitting the page, or the block's rows, costs more than the tiles save: 16 rows take 5 % (head_dim
// 128) to 24 % (64) longer than the AVX-512 kernels, 32 rows 25 and 15 % less.
constexpr int kMinFp16Rows = 28;
constexpr int kMinKeys = 4;
constexpr int kMinValues = 16;

// Keys as second operands, [dim / 2][64 tokens][2 channels], dim rounded up to 32 with zeros; of tokens,
// whole tiles. False where one is not finite: high and low are no sum then.
inline bool split_keys(const PageData& page, Operand& out) noexcept {
    constexpr std::ptrdiff_t kRowBytes = kPage * 4;
    NotFinite bad;
    for (int t0 = 0; t0 < page.n_tokens; t0 += kTileRows) {
        const int n = page.n_tokens - t0 < kTileRows ? page.n_tokens - t0 : kTileRows;
        for (int c = 0; c < page.head_dim; c += 2 * kTileRows) {
            const int n_channels = page.head_dim - c < 2 * kTileRows ? page.head_dim - c : 2 * kTileRows;
            const __mmask16 lanes0 = avx512::lane_mask(n_channels < 16 ? n_channels : 16),
                            lanes1 = avx512::lane_mask(n_channels < 16 ? 0 : n_channels - 16);
            __m512 high[16], low[16];
            for (int t = 0; t < kTileRows; ++t) {
                if (t >= n) {
                    high[t] = low[t] = _mm512_setzero_ps();
                    continue;
                }
                const std::ptrdiff_t at = std::ptrdiff_t(c) * 2;
                const std::byte* row = page.data + (t0 + t) * page.token_stride_bytes + at;
                if (page.next != nullptr) {
                    avx512::prefetch(page.next + (t0 + t) * page.token_stride_bytes + at);
                }
                const __m512 x0 = avx512::load_halves(row, lanes0),
                             x1 = avx512::load_halves(row + 32, lanes1);
                bad.see(x0), bad.see(x1);
                const Halves pair = split(x0, x1);
                high[t] = _mm512_castsi512_ps(pair.high), low[t] = _mm512_castsi512_ps(pair.low);
            }
            avx512::transpose(high);
            avx512::transpose(low);
            const std::ptrdiff_t to = c / 2 * kRowBytes + std::ptrdiff_t(t0) * 4;
            for (int i = 0; i < kTileRows; ++i) {
                _mm512_storeu_ps(out.high + to + i * kRowBytes, high[i]);
                _mm512_storeu_ps(out.low + to + i * kRowBytes, low[i]);
            }
        }
    }
    return !bad.any();
}

// Values as second operands, [32][dim][2 tokens], dim rounded up to 16; of tokens, whole tiles of 32.
inline bool split_values(const PageData& page, int dim, Operand& out) noexcept {
    const std::ptrdiff_t row_bytes = std::ptrdiff_t(dim) * 4;
    NotFinite bad;
    for (int t = 0; t < formats::round_up(page.n_tokens, 2 * kTileRows); t += 2) {
        const std::byte* row = page.data + t * page.token_stride_bytes;
        const std::ptrdiff_t to = t / 2 * row_bytes;
        for (int c = 0; c < dim; c += 16) {
            const int n = page.head_dim - c < 16 ? page.head_dim - c : 16;
            const __mmask16 none = 0, lanes = avx512::lane_mask(n);
            const std::byte* at = row + std::ptrdiff_t(c) * 2;
            if (page.next != nullptr && c % 32 == 0) {
                avx512::prefetch(page.next + (at - page.data));
                avx512::prefetch(page.next + (at - page.data) + page.token_stride_bytes);
            }
            const __m512 x0 = avx512::load_halves(at, t < page.n_tokens ? lanes : none),
                         x1 = avx512::load_halves(at + page.token_stride_bytes,
                                                  t + 1 < page.n_tokens ? lanes : none);
            bad.see(x0), bad.see(x1);
            const Halves pair = split_interleaved<Low::exact>(x0, x1);
            _mm512_storeu_si512(out.high + to + std::ptrdiff_t(c) * 4, pair.high);
            _mm512_storeu_si512(out.low + to + std::ptrdiff_t(c) * 4, pair.low);
        }
    }
    return !bad.any();
}

// n <= 16 rows of x as first operand, [16][length rounded up to 32]; x is read up to a multiple of 16.
inline void split_rows(const float* x, std::ptrdiff_t stride, int n, int length, Operand& out) noexcept {
    const std::ptrdiff_t row_bytes = formats::round_up(length, 32) * 2;
    for (int r = 0; r < n; ++r) {
        const float* row = x + r * stride;
        std::byte *high = out.high + r * row_bytes, *low = out.low + r * row_bytes;
        for (int c = 0; c < length; c += 32) {
            const __m512 second = c + 16 < length ? _mm512_loadu_ps(row + c + 16) : _mm512_setzero_ps();
            const Halves pair = split(_mm512_loadu_ps(row + c), second);
            _mm512_storeu_si512(high + std::ptrdiff_t(c) * 2, pair.high);
            _mm512_storeu_si512(low + std::ptrdiff_t(c) * 2, pair.low);
        }
    }
}

struct Memory {
    Operand rows, page;
    float* block;  // [16][64], where a block or a page has less than whole tiles
};

inline Memory place(std::byte* memory, int row_length, std::ptrdiff_t page_bytes) noexcept {
    const std::ptrdiff_t row_bytes = std::ptrdiff_t(formats::round_up(row_length, 32)) * 2 * kTileRows;
    Memory m;
    m.block = reinterpret_cast<float*>(memory);
    m.rows.high = memory + std::ptrdiff_t(kTileRows * kPage * sizeof(float));
    m.rows.low = m.rows.high + row_bytes;
    m.page.high = m.rows.low + row_bytes;
    m.page.low = m.page.high + page_bytes;
    return m;
}

}  // namespace

std::size_t fp16_scratch_bytes(int head_dim) noexcept {
    const auto dim = static_cast<std::size_t>(formats::round_up(head_dim, 32));
    const std::size_t length = dim > kPage ? dim : kPage;
    return (kTileRows * kPage + 2 * kPage * dim / 2 + 2 * kTileRows * length / 2) * 4;
}

void qk_f16(const QkArgs& a) noexcept {
    const int length = formats::round_up(a.keys.head_dim, 16);
    Memory m = place(a.scratch, length, std::ptrdiff_t(formats::round_up(length, 32)) * kPage * 2);
    if (a.n_rows < kMinFp16Rows || a.keys.n_tokens < kMinKeys || !split_keys(a.keys, m.page)) {
        avx512::qk_f16(a);
        return;
    }
    const int n_tiles = (a.keys.n_tokens + 15) / 16, n_steps = (length + 31) / 32;
    const TilesOfThread tiles;
    for (int r = 0; r < a.n_rows; r += kTileRows) {
        const int n = a.n_rows - r < kTileRows ? a.n_rows - r : kTileRows;
        split_rows(a.q + r * a.q_stride, a.q_stride, n, length, m.rows);
        float* scores = a.scores + std::ptrdiff_t(r) * kPage;
        const bool whole = n == kTileRows && a.keys.n_tokens % 16 == 0;
        float* to = whole ? scores : m.block;
        multiply<Start::zero>(m.rows, n_steps, m.page, kPage * 4, n_tiles, to, kPage * 4);
        for (int i = 0; i < n && !whole; ++i) {
            std::memcpy(scores + i * kPage, to + i * kPage, std::size_t(a.keys.n_tokens) * sizeof(float));
        }
    }
}

void pv_f16(const PvArgs& a) noexcept {
    const int dim = formats::round_up(a.values.head_dim, 16);
    Memory m = place(a.scratch, kPage, std::ptrdiff_t(dim) * kPage * 2);
    if (a.n_rows < kMinFp16Rows || a.values.n_tokens < kMinValues || !split_values(a.values, dim, m.page)) {
        avx512::pv_f16(a);
        return;
    }
    const int n_steps = (a.values.n_tokens + 31) / 32;
    const std::ptrdiff_t row_bytes = std::ptrdiff_t(dim) * 4;
    const TilesOfThread tiles;
    for (int r = 0; r < a.n_rows; r += kTileRows) {
        const int n = a.n_rows - r < kTileRows ? a.n_rows - r : kTileRows;
        split_rows(a.p + std::ptrdiff_t(r) * kPage, kPage, n, kPage, m.rows);
        for (int c = 0; c < dim; c += 64) {
            const int n_tiles = dim - c < 64 ? (dim - c) / 16 : 4;
            const Operand codes = {m.page.high + std::ptrdiff_t(c) * 4, m.page.low + std::ptrdiff_t(c) * 4};
            float* o = a.o + r * a.o_stride + c;
            if (n == kTileRows) {
                multiply<Start::sums, kPage>(m.rows, n_steps, codes, row_bytes, n_tiles, o, a.o_stride * 4);
                continue;
            }
            multiply<Start::zero, kPage>(m.rows, n_steps, codes, row_bytes, n_tiles, m.block, kPage * 4);
            for (int i = 0; i < n; ++i) {
                for (int j = 0; j < n_tiles * 16; j += 16) {
                    float* at = o + i * a.o_stride + j;
                    const __m512 sum = _mm512_loadu_ps(m.block + i * kPage + j);
                    _mm512_storeu_ps(at, _mm512_add_ps(_mm512_loadu_ps(at), sum));
                }
            }
        }
    }
}

}  // namespace mixed_kv::kernels::amx
