#include <cstddef>

#include "mixed_kv/key_shift.h"

namespace mixed_kv {

namespace {

// (a, b) becomes (c a - s b, s a + c b) times scale(i), with c and s of pair i. sign: of s.
template <typename Scale>
void turn_pairs(const RotaryPairs& pairs, const float* turn, float sign, float* x, Scale&& scale) noexcept {
    const std::ptrdiff_t n = pairs.n_pairs;
    const float* cosine = turn;
    const float* sine = turn + n;
    x += pairs.first;
    const auto one = [&](std::ptrdiff_t i, float& a, float& b) {
        const float c = cosine[i] * scale(i), s = sine[i] * scale(i) * sign;
        const float a0 = a, b0 = b;
        a = c * a0 - s * b0;
        b = s * a0 + c * b0;
    };
    if (pairs.interleaved) {
        for (std::ptrdiff_t i = 0; i < n; ++i) one(i, x[2 * i], x[2 * i + 1]);
    } else {
        for (std::ptrdiff_t i = 0; i < n; ++i) one(i, x[i], x[n + i]);
    }
}

}  // namespace

void turn_key(const RotaryPairs& pairs, const float* turn, float* key) noexcept {
    turn_pairs(pairs, turn, 1.0f, key, [](std::ptrdiff_t) { return 1.0f; });
}

void turn_key_back(const RotaryPairs& pairs, const float* turn, float* key) noexcept {
    const float *c = turn, *s = turn + pairs.n_pairs;
    turn_pairs(pairs, turn, -1.0f, key, [&](std::ptrdiff_t i) { return 1.0f / (c[i] * c[i] + s[i] * s[i]); });
}

void turn_query(const RotaryPairs& pairs, const float* turn, float* query) noexcept {
    turn_pairs(pairs, turn, -1.0f, query, [](std::ptrdiff_t) { return 1.0f; });
}

}  // namespace mixed_kv
