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

// Steps up to the narrowest width whose codes lie as close as the channel's values; more would stand for no
// value. Values that were decoded are as far apart as the codes that they had: a block encoded again finds
// its widths again. Rounding them to binary16 may have moved the nearest two by what is left of one more
// code.
int useful_steps(float range, float gap) noexcept {
    int steps = range > 0.0f ? 1 : 0;
    while (steps > 0 && steps < kSteps && gap * static_cast<float>(1 << kTierWidths[steps]) <= range) {
        ++steps;
    }
    return steps;
}

constexpr int kMaxQuads = kernels::kMaxHeadDim / 4;
constexpr int kMaxSlots = kMaxQuads / 4;

struct Quad {
    std::uint8_t index;
    int useful_steps;
    float importance;
};

struct Slot {
    const Quad* quads;  // [4]
    float importance;
    int steps;  // taken so far
    bool ended;
};

// The quads of a decoded tier come together again.
bool comes_first(const Quad& a, const Quad& b) noexcept {
    if (a.useful_steps != b.useful_steps) {
        return a.useful_steps > b.useful_steps;
    }
    return a.importance != b.importance ? a.importance > b.importance : a.index < b.index;
}

// The step of the largest gain is taken, of equal gains the first, until the budget is spent.
void spend(int budget, Slot* slots, int n_slots) noexcept {
    for (int left = budget; left > 0;) {
        Slot* best = nullptr;
        float best_gain = 0.0f;
        for (Slot* slot = slots; slot < slots + n_slots; ++slot) {
            if (slot->ended || slot->steps == slot->quads[0].useful_steps) {
                continue;
            }
            const float g = kGain[slot->steps] * slot->importance;
            if (g > best_gain) {
                best = slot;
                best_gain = g;
            }
        }
        if (best == nullptr) {
            break;
        }
        const int price = kTierWidths[best->steps + 1] - kTierWidths[best->steps];
        if (price > left) {
            best->ended = true;
            continue;
        }
        left -= price;
        ++best->steps;
    }
}

}  // namespace

void choose_key_tiers(int code_bits, const KeySpreads& spreads, int head_dim, std::byte* block) noexcept {
    const int n_quads = head_dim / 4, n_slots = head_dim / 16;
    Quad quads[kMaxQuads];
    for (int g = 0; g < n_quads; ++g) {
        quads[g] = {static_cast<std::uint8_t>(g), 0, importance(code_bits, spreads.ranges + g * 4)};
        for (int c = g * 4; c < g * 4 + 4; ++c) {
            quads[g].useful_steps =
                std::max(quads[g].useful_steps, useful_steps(spreads.ranges[c], spreads.gaps[c]));
        }
    }
    std::sort(quads, quads + n_quads, comes_first);

    Slot slots[kMaxSlots];
    for (int s = 0; s < n_slots; ++s) {
        const Quad* q = quads + s * 4;
        slots[s] = {q, (q[0].importance + q[1].importance) + (q[2].importance + q[3].importance), 0, false};
    }
    spend(width_budget(code_bits, head_dim), slots, n_slots);
    // Widths decrease with the importances, but for important slots with few useful steps.
    std::sort(slots, slots + n_slots, [](const Slot& a, const Slot& b) {
        return a.steps != b.steps ? a.steps > b.steps : a.quads < b.quads;
    });

    auto* header = reinterpret_cast<std::uint8_t*>(block);
    std::fill_n(header, tier_header_bytes(head_dim), std::uint8_t(0));
    for (int s = 0; s < n_slots; ++s) {
        for (int i = 0; i < 4; ++i) {
            header[s * 4 + i] = slots[s].quads[i].index;
        }
        header[n_quads + s] = static_cast<std::uint8_t>(kTierWidths[slots[s].steps]);
    }
}

}  // namespace mixed_kv::formats
