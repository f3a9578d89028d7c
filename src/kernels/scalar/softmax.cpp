#include <cmath>
#include <limits>

#include "kernels/scalar/scalar.h"
#include "mixed_kv/fp16.h"

namespace mixed_kv::kernels::scalar {

void logits(const LogitArgs& a) noexcept {
    constexpr float kMasked = -std::numeric_limits<float>::infinity();
    for (int t = 0; t < kPage; ++t) {
        if (t >= a.n_tokens) {
            a.scores[t] = kMasked;
            continue;
        }
        float x = a.softcap != 0.0f ? a.softcap * std::tanh(a.scores[t]) : a.scores[t];
        if (a.mask != nullptr) {
            const float mask = mixed_kv::fp16_to_fp32(a.mask[t]);
            x = mask == kMasked ? kMasked : x + a.slope * mask;  // whatever the score was, NaN included
        }
        a.scores[t] = x;
    }
}

void softmax(const SoftmaxArgs& a) noexcept {
    constexpr float kMasked = -std::numeric_limits<float>::infinity();
    for (int r = 0; r < a.n_rows; ++r) {
        float* s = a.scores + r * kPage;
        bool all_masked = true;
        float largest = a.m[r];
        for (int t = 0; t < kPage; ++t) {
            all_masked = all_masked && s[t] == kMasked;
            largest = s[t] > largest ? s[t] : largest;
        }
        if (all_masked) {
            for (int t = 0; t < kPage; ++t) {
                s[t] = 0.0f;
            }
            a.rescale[r] = 1.0f;
            continue;
        }
        float sum = 0.0f;
        for (int t = 0; t < kPage; ++t) {
            s[t] = std::exp(s[t] - largest);
            sum += s[t];
        }
        a.rescale[r] = std::exp(a.m[r] - largest);
        a.l[r] = a.l[r] * a.rescale[r] + sum;
        a.m[r] = largest;
    }
}

}  // namespace mixed_kv::kernels::scalar
