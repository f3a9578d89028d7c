#include <cstddef>

#include "mixed_kv/key_shift.h"

namespace mixed_kv {

namespace {

// (a, b) becomes (c a - s b, s a + c b), with c and s of their pair. sign: of s.
void turn_pairs(const RotaryPairs& pairs, const float* turn, float sign, float* x) noexcept {
    const std::ptrdiff_t n = pairs.n_pairs;
    const float* cosine = turn;
    const float* sine = turn + n;
    x += pairs.first;
    const auto one = [&](std::ptrdiff_t i, float& a, float& b) {
        const float c = cosine[i], s = sine[i] * sign;
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
    turn_pairs(pairs, turn, 1.0f, key);
}

void turn_query(const RotaryPairs& pairs, const float* turn, float* query) noexcept {
    turn_pairs(pairs, turn, -1.0f, query);
}

}  // namespace mixed_kv
