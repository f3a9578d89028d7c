#pragma once

#include <cstddef>
#include <cstdint>

#include "mixed_kv/fp16.h"

namespace mixed_kv {

// An additive attention mask, fp16 [n_stream][n_head][n_q][n_kv]; head and stream extents of 1 broadcast (any
// extent divides: index modulo extent, as ggml does). data == nullptr: every cell is visible.
// A cell is visible to a query unless its mask value is -inf.
struct MaskView {
    const fp16_t* data = nullptr;
    std::ptrdiff_t row_stride_bytes = 0;
    std::ptrdiff_t head_stride_bytes = 0;
    std::ptrdiff_t stream_stride_bytes = 0;
    int n_head = 1;
    int n_stream = 1;

    const fp16_t* row(int stream, int head, std::int64_t query) const noexcept {
        if (data == nullptr) return nullptr;
        return reinterpret_cast<const fp16_t*>(
            reinterpret_cast<const std::byte*>(data) + (stream % n_stream) * stream_stride_bytes +
            (head % n_head) * head_stride_bytes + query * row_stride_bytes);
    }
};

inline constexpr fp16_t kMaskedOut = 0xfc00;  // -inf

}  // namespace mixed_kv
