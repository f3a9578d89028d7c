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
        const auto for_each_score = [&](auto&& f) {
            for (int page = 0; page < a.n_pages; ++page) {
                float* s = a.scores + page * a.page_stride + std::ptrdiff_t(r) * kPage;
                for (int t = 0; t < kPage; ++t) f(s[t]);
            }
        };
        bool all_masked = true;
        float largest = a.m[r];
        for_each_score([&](float s) {
            all_masked = all_masked && s == kMasked;
            largest = s > largest ? s : largest;
        });
        if (all_masked) {
            for_each_score([](float& s) { s = 0.0f; });
            a.rescale[r] = 1.0f;
            continue;
        }
        float sum = 0.0f;
        for_each_score([&](float& s) {
            s = std::exp(s - largest);
            sum += s;
        });
        a.rescale[r] = std::exp(a.m[r] - largest);
        a.l[r] = a.l[r] * a.rescale[r] + sum;
        a.m[r] = largest;
    }
}

}  // namespace mixed_kv::kernels::scalar
