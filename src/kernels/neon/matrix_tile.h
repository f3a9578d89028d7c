#pragma once

#include "kernels/neon/lanes.h"
#include "kernels/shared/tiles.h"

namespace mixed_kv::kernels::neon {
namespace {

constexpr int kMatrixRows = 8;    // of a register tile
constexpr int kPanelColumns = 8;  // two vectors
constexpr int kPanelRows = 256;   // 8 KiB

// c[i][n_columns] (+)= a[kRows][k] * panel[k][8], with 16 sums in registers. Out of line: inlined into
// several loops, it loses registers to them.
struct Product {
    const float* a;
    std::ptrdiff_t a_stride;
    const float* panel;
    int k;
    float* c;
    std::ptrdiff_t c_stride;
    int n_columns;  // at most 8
    bool accumulate;
};

template <int kRows>
__attribute__((noinline)) void matrix_tile(const Product& m) noexcept {
    float32x4_t sum[kRows][2];
    shared::unroll<kRows>([&](auto i) { sum[i.value][0] = sum[i.value][1] = vdupq_n_f32(0.0f); });
    const float* a = m.a;
    const float* panel = m.panel;
    int k = 0;
    for (; k + 4 <= m.k; k += 4, a += 4, panel += 4 * kPanelColumns) {
        float32x4_t x[kRows];
        shared::unroll<kRows>([&](auto i) { x[i.value] = vld1q_f32(a + i.value * m.a_stride); });
        shared::unroll<4>([&](auto step) {
            constexpr int kLane = decltype(step)::value;
            const float32x4_t b0 = vld1q_f32(panel + kLane * kPanelColumns);
            const float32x4_t b1 = vld1q_f32(panel + kLane * kPanelColumns + 4);
            shared::unroll<kRows>([&](auto i) {
                sum[i.value][0] = vfmaq_laneq_f32(sum[i.value][0], b0, x[i.value], kLane);
                sum[i.value][1] = vfmaq_laneq_f32(sum[i.value][1], b1, x[i.value], kLane);
            });
        });
    }
    for (; k < m.k; ++k, ++a, panel += kPanelColumns) {
        const float32x4_t b0 = vld1q_f32(panel), b1 = vld1q_f32(panel + 4);
        shared::unroll<kRows>([&](auto i) {
            const float32x4_t x = vdupq_n_f32(a[i.value * m.a_stride]);
            sum[i.value][0] = vfmaq_f32(sum[i.value][0], b0, x);
            sum[i.value][1] = vfmaq_f32(sum[i.value][1], b1, x);
        });
    }
    shared::unroll<kRows>([&](auto i) {
        float* c = m.c + i.value * m.c_stride;
        if (m.n_columns == kPanelColumns) {
            float32x4_t s0 = sum[i.value][0], s1 = sum[i.value][1];
            if (m.accumulate) s0 = vaddq_f32(vld1q_f32(c), s0), s1 = vaddq_f32(vld1q_f32(c + 4), s1);
            vst1q_f32(c, s0);
            vst1q_f32(c + 4, s1);
            return;
        }
        float sums[kPanelColumns];
        vst1q_f32(sums, sum[i.value][0]);
        vst1q_f32(sums + 4, sum[i.value][1]);
        for (int j = 0; j < m.n_columns; ++j) c[j] = m.accumulate ? c[j] + sums[j] : sums[j];
    });
}

// All n_rows rows of a.
inline void multiply_panel(Product m, int n_rows) noexcept {
    const float* const a = m.a;
    float* const c = m.c;
    shared::for_row_tiles<kMatrixRows>(n_rows, [&](int r, auto rows) {
        m.a = a + r * m.a_stride;
        m.c = c + r * m.c_stride;
        matrix_tile<decltype(rows)::value>(m);
    });
}

}  // namespace
}  // namespace mixed_kv::kernels::neon
