#pragma once

#include <cmath>
#include <limits>

namespace mixed_kv {

// The result of attention over a set of cells: o = softmax-weighted mean of the values, lse = natural
// logarithm of the sum of exponentiated logits. The empty set is o = 0, lse = -inf. Merging is associative
// and commutative up to rounding (the FlashInfer / Flash-Decoding state).
struct MergeWeights {
    float a, b;  // o = a * o_a + b * o_b
    float lse;
};

inline MergeWeights merge_weights(float lse_a, float lse_b) noexcept {
    const float max = lse_a > lse_b ? lse_a : lse_b;
    if (max == -std::numeric_limits<float>::infinity()) return {0.0f, 0.0f, max};
    const float ea = std::exp(lse_a - max);
    const float eb = std::exp(lse_b - max);
    const float sum = ea + eb;
    return {ea / sum, eb / sum, max + std::log(sum)};
}

}  // namespace mixed_kv
