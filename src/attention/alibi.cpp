#include <bit>
#include <cmath>
#include <cstdint>

#include "mixed_kv/flash_decode.h"

namespace mixed_kv {

// Heads up to the largest power of two take the slopes of that power; the rest interleave between them. In
// float and by the same formula as ggml, so that the products with the mask agree to the last bit.
float alibi_slope(float max_bias, int n_head, int head) noexcept {
    if (!(max_bias > 0.0f) || n_head <= 0) return 1.0f;
    const int n_head_log2 = static_cast<int>(std::bit_floor(static_cast<std::uint32_t>(n_head)));
    const float m0 = std::pow(2.0f, -max_bias / static_cast<float>(n_head_log2));
    const float m1 = std::pow(2.0f, -(max_bias / 2.0f) / static_cast<float>(n_head_log2));
    return head < n_head_log2 ? std::pow(m0, static_cast<float>(head + 1))
                              : std::pow(m1, static_cast<float>(2 * (head - n_head_log2) + 1));
}

}  // namespace mixed_kv
