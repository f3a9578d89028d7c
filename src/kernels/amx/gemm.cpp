// Matrix products of many rows on bfloat16 tiles, with the three products of fp16_pages.cpp: decoded values
// of MLA's cold pages. Here both factors have more than 16 bits, and low parts of both are rounded.

#include "formats/block_layout.h"
#include "kernels/amx/amx.h"
#include "kernels/amx/bf16.h"
#include "kernels/avx512/avx512.h"

namespace mixed_kv::kernels::amx {
namespace {

constexpr int kRows = 128, kDepth = 64, kColumns = 64;

// 52 KiB of stack: a block of a as first operands [kRows][kDepth], of b as second ones
// [kDepth / 2][kColumns][2], both in two parts; sums of less than whole tiles.
struct Memory {
    alignas(64) std::byte rows[2][kRows * kDepth * 2];
    alignas(64) std::byte columns[2][kDepth * kColumns * 2];
    alignas(64) float block[kTileRows * kColumns];
};

// n values of a row, 0 <= n: the first 16 of them, the rest 0.
inline __m512 load_upto(const float* x, int n) noexcept {
    return _mm512_maskz_loadu_ps(avx512::lane_mask(n < 0 ? 0 : n < 16 ? n : 16), x);
}

inline void split_rows(const float* a, std::ptrdiff_t stride, int n_rows, int depth, Memory& s) noexcept {
    for (int r = 0; r < n_rows; ++r, a += stride) {
        for (int k = 0; k < depth; k += 32) {
            const Halves pair = split(load_upto(a + k, depth - k), load_upto(a + k + 16, depth - k - 16));
            const std::ptrdiff_t to = (r * kDepth + k) * 2;
            _mm512_storeu_si512(s.rows[0] + to, pair.high);
            _mm512_storeu_si512(s.rows[1] + to, pair.low);
        }
    }
}

// Whole tiles of 32 summed rows of b and 16 columns.
inline void split_columns(const float* b, std::ptrdiff_t stride, int depth, int n_columns,
                          Memory& s) noexcept {
    for (int k = 0; k < formats::round_up(depth, 32); k += 2, b += 2 * stride) {
        for (int j = 0; j < n_columns; j += 16) {
            const __m512 even = load_upto(b + j, k < depth ? n_columns - j : 0);
            const __m512 odd = load_upto(b + stride + j, k + 1 < depth ? n_columns - j : 0);
            const Halves pair = split_interleaved<Low::rounded>(even, odd);
            const std::ptrdiff_t to = (k / 2 * kColumns + j) * 4;
            _mm512_storeu_si512(s.columns[0] + to, pair.high);
            _mm512_storeu_si512(s.columns[1] + to, pair.low);
        }
    }
}

// n rows and n_columns columns of c (+)= the operands' product; row: the first of the rows.
inline void add_block(float* c, std::ptrdiff_t stride, int row, int n, int depth, int n_columns, bool add,
                      Memory& s) noexcept {
    const int n_steps = (depth + 31) / 32, n_tiles = (n_columns + 15) / 16;
    const Operand rows{s.rows[0] + row * kDepth * 2, s.rows[1] + row * kDepth * 2};
    const Operand columns{s.columns[0], s.columns[1]};
    constexpr std::ptrdiff_t kColumnBytes = kColumns * 4;
    if (n == kTileRows && n_columns % 16 == 0) {
        if (add) {
            multiply<Start::sums, kDepth>(rows, n_steps, columns, kColumnBytes, n_tiles, c, stride * 4);
        } else {
            multiply<Start::zero, kDepth>(rows, n_steps, columns, kColumnBytes, n_tiles, c, stride * 4);
        }
        return;
    }
    multiply<Start::zero, kDepth>(rows, n_steps, columns, kColumnBytes, n_tiles, s.block, kColumnBytes);
    for (int i = 0; i < n; ++i) {
        for (int j = 0; j < n_columns; j += 16) {
            float* to = c + i * stride + j;
            __m512 sum = _mm512_loadu_ps(s.block + i * kColumns + j);
            if (add) sum = _mm512_add_ps(sum, load_upto(to, n_columns - j));
            _mm512_mask_storeu_ps(to, avx512::lane_mask(n_columns - j < 16 ? n_columns - j : 16), sum);
        }
    }
}

}  // namespace

void gemm(const GemmArgs& g) noexcept {
    if (g.m < kMinRows) {
        avx512::gemm(g);
        return;
    }
    const auto part = [](int whole, int from, int most) { return whole - from < most ? whole - from : most; };
    Memory s;
    const TilesOfThread tiles;
    for (int i = 0; i < g.m; i += kRows) {
        const int n_rows = part(g.m, i, kRows);
        for (int k = 0; k < g.k; k += kDepth) {
            const int depth = part(g.k, k, kDepth);
            split_rows(g.a + i * g.a_stride + k, g.a_stride, n_rows, depth, s);
            for (int j = 0; j < g.n; j += kColumns) {
                const int n_columns = part(g.n, j, kColumns);
                split_columns(g.b + k * g.b_stride + j, g.b_stride, depth, n_columns, s);
                for (int r = 0; r < n_rows; r += kTileRows) {
                    add_block(g.c + (i + r) * g.c_stride + j, g.c_stride, r, part(n_rows, r, kTileRows),
                              depth, n_columns, g.accumulate || k > 0, s);
                }
            }
        }
    }
}

}  // namespace mixed_kv::kernels::amx
