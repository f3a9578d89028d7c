// Matrix products, the Hadamard transform, conversions.

#include "formats/block_layout.h"
#include "kernels/neon/matrix_tile.h"
#include "kernels/neon/neon.h"

namespace mixed_kv::kernels::neon {

// Eight columns of b for all rows of a. They are copied together first: at strides of a power of two they
// would share a few sets of L1 and push each other out.
void gemm(const GemmArgs& g) noexcept {
    alignas(64) float panel[kPanelRows * kPanelColumns];
    for (int j = 0; j < g.n; j += kPanelColumns) {
        const int n_columns = g.n - j < kPanelColumns ? g.n - j : kPanelColumns;
        for (int k = 0; k < g.k || k == 0; k += kPanelRows) {
            const int n = g.k - k < kPanelRows ? g.k - k : kPanelRows;
            const float* b = g.b + k * g.b_stride + j;
            for (int i = 0; i < n; ++i, b += g.b_stride) {
                float* row = panel + i * kPanelColumns;
                if (n_columns == kPanelColumns) {
                    vst1q_f32(row, vld1q_f32(b));
                    vst1q_f32(row + 4, vld1q_f32(b + 4));
                } else {
                    for (int c = 0; c < kPanelColumns; ++c) row[c] = c < n_columns ? b[c] : 0.0f;
                }
            }
            multiply_panel(
                {g.a + k, g.a_stride, panel, n, g.c + j, g.c_stride, n_columns, g.accumulate || k != 0}, g.m);
        }
    }
}

void scale(float* x, std::ptrdiff_t n, float factor) noexcept {
    std::ptrdiff_t i = 0;
    for (; i + 4 <= n; i += 4) {
        vst1q_f32(x + i, vmulq_n_f32(vld1q_f32(x + i), factor));
    }
    for (; i < n; ++i) {
        x[i] *= factor;
    }
}

// Butterflies at distance 1 and 2 inside vectors, then between vectors; the order of the sums is the scalar
// one.
void hadamard(float* x, int n, int size) noexcept {
    if (size < 4) {
        return;  // no rotation (sizes are 1 or at least 32)
    }
    const float norm = formats::hadamard_norm(size);
    for (float* group = x; group < x + n; group += size) {
        for (int i = 0; i < size; i += 8) {
            float32x4_t a = vld1q_f32(group + i), b = vld1q_f32(group + i + 4);
            // Neighbours apart, their sums and differences together again; then pairs of neighbours alike.
            float32x4_t even = vuzp1q_f32(a, b), odd = vuzp2q_f32(a, b);
            float32x4_t sum = vaddq_f32(even, odd), difference = vsubq_f32(even, odd);
            // sum: 0 2 4 6, difference: 1 3 5 7 of the first step's results.
            even = vtrn1q_f32(sum, difference), odd = vtrn2q_f32(sum, difference);  // 0 1 4 5 and 2 3 6 7
            sum = vaddq_f32(even, odd), difference = vsubq_f32(even, odd);
            a = vcombine_f32(vget_low_f32(sum), vget_low_f32(difference));
            b = vcombine_f32(vget_high_f32(sum), vget_high_f32(difference));
            vst1q_f32(group + i, a);
            vst1q_f32(group + i + 4, b);
        }
        for (int h = 4; h < size; h *= 2) {
            const bool last = h * 2 == size;
            for (int i = 0; i < size; i += 2 * h) {
                for (int j = i; j < i + h; j += 4) {
                    const float32x4_t a = vld1q_f32(group + j), b = vld1q_f32(group + j + h);
                    const float32x4_t sum = vaddq_f32(a, b), difference = vsubq_f32(a, b);
                    vst1q_f32(group + j, last ? vmulq_n_f32(sum, norm) : sum);
                    vst1q_f32(group + j + h, last ? vmulq_n_f32(difference, norm) : difference);
                }
            }
        }
    }
}

void fp32_to_fp16(const float* in, std::uint16_t* out, std::ptrdiff_t n) noexcept {
    std::ptrdiff_t i = 0;
    for (; i + 4 <= n; i += 4) {
        Lanes::store_h(out + i, Lanes::to_halves(vld1q_f32(in + i)));
    }
    if (i < n) {
        const auto rest = Lanes::to_halves(Lanes::load(in + i, static_cast<int>(n - i)));
        std::memcpy(out + i, &rest, std::size_t(n - i) * sizeof out[0]);
    }
}

void fp16_to_fp32(const std::uint16_t* in, float* out, std::ptrdiff_t n) noexcept {
    std::ptrdiff_t i = 0;
    for (; i + 4 <= n; i += 4) {
        vst1q_f32(out + i, Lanes::load_halves(in + i));
    }
    if (i < n) {
        const int rest = static_cast<int>(n - i);
        Lanes::store(out + i, Lanes::load_halves(in + i, rest), rest);
    }
}

}  // namespace mixed_kv::kernels::neon
