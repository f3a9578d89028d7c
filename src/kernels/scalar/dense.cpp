// FP16 pages, matrix products and conversions.

#include "formats/block_layout.h"
#include "kernels/scalar/scalar.h"
#include "kernels/tiered_keys.h"
#include "mixed_kv/fp16.h"

namespace mixed_kv::kernels::scalar {
namespace {

// Row t of an FP16 page, [head_dim].
const std::uint16_t* page_row(const PageData& page, int t) noexcept {
    return reinterpret_cast<const std::uint16_t*>(page.data + t * page.token_stride_bytes);
}

void row_to_fp32(const PageData& page, int t, float* out) noexcept {
    const std::uint16_t* row = page_row(page, t);
    for (int c = 0; c < page.head_dim; ++c) {
        out[c] = mixed_kv::fp16_to_fp32(row[c]);
    }
}

}  // namespace

// Everything lives on the stack here; the size is the common minimum of the instruction sets.
// Tiered keys alone take scratch.
std::size_t scratch_bytes(int head_dim) noexcept { return permuted_bytes(head_dim, kMaxDecodeRows); }

void qk_f16(const QkArgs& a) noexcept {
    for (int t = 0; t < a.keys.n_tokens; ++t) {
        float key[kMaxHeadDim];
        row_to_fp32(a.keys, t, key);
        for (int r = 0; r < a.n_rows; ++r) {
            const float* q = a.q + r * a.q_stride;
            float lanes[4] = {};  // shorter sums round less
            int c = 0;
            for (; c + 4 <= a.keys.head_dim; c += 4) {
                for (int i = 0; i < 4; ++i) {
                    lanes[i] += q[c + i] * key[c + i];
                }
            }
            for (; c < a.keys.head_dim; ++c) {
                lanes[0] += q[c] * key[c];
            }
            a.scores[r * kPage + t] = (lanes[0] + lanes[1]) + (lanes[2] + lanes[3]);
        }
    }
}

void pv_f16(const PvArgs& a) noexcept {
    for (int t = 0; t < a.values.n_tokens; ++t) {
        float value[kMaxHeadDim];
        row_to_fp32(a.values, t, value);
        for (int r = 0; r < a.n_rows; ++r) {
            const float p = a.p[r * kPage + t];
            float* o = a.o + r * a.o_stride;
            for (int c = 0; c < a.values.head_dim; ++c) {
                o[c] += p * value[c];
            }
        }
    }
}

void decode_f16(const DecodeArgs& a) noexcept {
    for (int t = 0; t < kPage; ++t) {
        const std::uint16_t* row = t < a.page.n_tokens ? page_row(a.page, t) : nullptr;
        for (int c = 0; c < a.page.head_dim; ++c) {
            const float x = row != nullptr ? mixed_kv::fp16_to_fp32(row[c]) : 0.0f;
            *(a.transposed ? a.out + c * a.out_stride + t : a.out + t * a.out_stride + c) = x;
        }
    }
}

void gemm(const GemmArgs& a) noexcept {
    for (int i = 0; i < a.m; ++i) {
        float* c = a.c + i * a.c_stride;
        for (int j = 0; j < a.n && !a.accumulate; ++j) {
            c[j] = 0.0f;
        }
        for (int k = 0; k < a.k; ++k) {
            const float x = a.a[i * a.a_stride + k];
            const float* b = a.b + k * a.b_stride;
            for (int j = 0; j < a.n; ++j) {
                c[j] += x * b[j];
            }
        }
    }
}

void scale(float* x, std::ptrdiff_t n, float factor) noexcept {
    for (std::ptrdiff_t i = 0; i < n; ++i) {
        x[i] *= factor;
    }
}

void hadamard(float* x, int n, int size) noexcept {
    const float norm = formats::hadamard_norm(size);
    for (float* group = x; size > 1 && group < x + n; group += size) {
        for (int h = 1; h < size; h *= 2) {
            for (int i = 0; i < size; i += 2 * h) {
                for (int j = i; j < i + h; ++j) {
                    const float u = group[j];
                    const float v = group[j + h];
                    group[j] = u + v;
                    group[j + h] = u - v;
                }
            }
        }
        for (int i = 0; i < size; ++i) {
            group[i] *= norm;
        }
    }
}

void fp32_to_fp16(const float* in, std::uint16_t* out, std::ptrdiff_t n) noexcept {
    for (std::ptrdiff_t i = 0; i < n; ++i) {
        out[i] = mixed_kv::fp32_to_fp16(in[i]);
    }
}

void fp16_to_fp32(const std::uint16_t* in, float* out, std::ptrdiff_t n) noexcept {
    for (std::ptrdiff_t i = 0; i < n; ++i) {
        out[i] = mixed_kv::fp16_to_fp32(in[i]);
    }
}

}  // namespace mixed_kv::kernels::scalar
