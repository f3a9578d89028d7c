#include "formats/key_tiers.h"

#include <algorithm>

#include "formats/block_layout.h"
#include "kernels/contract.h"

namespace mixed_kv::formats {
namespace {

// Mean squared error of a channel in units of its squared range: step^2 / 12; without codes, about the mean,
// what distributions between a gaussian's 64 values and a uniform one have.
constexpr double squared_error(int width) {
    const double top = static_cast<double>((1 << width) - 1);
    return width == 0 ? 1.0 / 18.0 : 1.0 / (12.0 * top * top);
}

// What each bit of the step from one width to the next takes away.
constexpr float gain(int step) {
    return static_cast<float>((squared_error(kTierWidths[step]) - squared_error(kTierWidths[step + 1])) /
                              (kTierWidths[step + 1] - kTierWidths[step]));
}
constexpr int kSteps = kMaxTiers - 1;
constexpr float kGain[kSteps] = {gain(0), gain(1), gain(2), gain(3)};

// The squared error weighs with the squared range, and at 3 bits once more with the range: what attention
// looks for lies in the wide channels. At 2 bits that would leave too little for the others; both powers were
// measured for both (docs/adr/0014-bits-by-channel.md).
float importance(int code_bits, const float* ranges) noexcept {
    float of[4];
    for (int i = 0; i < 4; ++i) {
        of[i] = ranges[i] * ranges[i];
        if (code_bits > 2) {
            of[i] *= ranges[i];
        }
    }
    return (of[0] + of[1]) + (of[2] + of[3]);
}

}  // namespace

void choose_key_tiers(int code_bits, const float* ranges, int head_dim, std::byte* block) noexcept {
    constexpr int kMaxQuads = kernels::kMaxHeadDim / 4;
    const int n_quads = head_dim / 4, n_slots = head_dim / 16;
    float of_quad[kMaxQuads];
    std::uint8_t order[kMaxQuads];
    for (int g = 0; g < n_quads; ++g) {
        of_quad[g] = importance(code_bits, ranges + g * 4);
        order[g] = static_cast<std::uint8_t>(g);
    }
    std::sort(order, order + n_quads, [&of_quad](std::uint8_t a, std::uint8_t b) {
        return of_quad[a] != of_quad[b] ? of_quad[a] > of_quad[b] : a < b;
    });

    float of_slot[kMaxQuads / 4];
    int step[kMaxQuads / 4];  // taken so far
    for (int s = 0; s < n_slots; ++s) {
        const std::uint8_t* quad = order + s * 4;
        of_slot[s] = (of_quad[quad[0]] + of_quad[quad[1]]) + (of_quad[quad[2]] + of_quad[quad[3]]);
        step[s] = 0;
    }
    // The widths do not increase from slot to slot: importances do not, and of equal gains the first is
    // taken. A slot of constant channels needs no code.
    bool ended[kMaxQuads / 4] = {};
    for (int left = width_budget(code_bits, head_dim); left > 0;) {
        int best = -1;
        float best_gain = 0.0f;
        for (int s = 0; s < n_slots; ++s) {
            if (ended[s] || step[s] == kSteps) {
                continue;
            }
            const float g = kGain[step[s]] * of_slot[s];
            if (g > best_gain) {
                best = s;
                best_gain = g;
            }
        }
        if (best < 0) {
            break;
        }
        const int price = kTierWidths[step[best] + 1] - kTierWidths[step[best]];
        if (price > left) {
            ended[best] = true;
            continue;
        }
        left -= price;
        ++step[best];
    }

    auto* header = reinterpret_cast<std::uint8_t*>(block);
    std::fill_n(header, tier_header_bytes(head_dim), std::uint8_t(0));
    std::copy_n(order, n_quads, header);
    for (int s = 0; s < n_slots; ++s) {
        header[n_quads + s] = static_cast<std::uint8_t>(kTierWidths[step[s]]);
    }
}

}  // namespace mixed_kv::formats
