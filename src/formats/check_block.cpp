#include <algorithm>
#include <bitset>
#include <cstring>
#include <iterator>
#include <string>

#include "formats/block_layout.h"
#include "kernels/contract.h"
#include "mixed_kv/cold_format.h"
#include "mixed_kv/error.h"
#include "mixed_kv/fp16.h"

namespace mixed_kv {

namespace {

using namespace formats;

[[noreturn]] void fail(const ColdFormat& format, KvRole role, const std::string& what) {
    throw Error("a " + std::string(format.name) + (role == KvRole::key ? " key" : " value") + " block " +
                what);
}

// Every quad once, and widths that there are, not increasing, within the budget: then read_key_tiers() stays
// within the block.
void check_header(const ColdFormat& format, int head_dim, const std::byte* block) {
    const auto at = [block](int i) { return std::to_integer<int>(block[i]); };
    const int n_quads = head_dim / 4, n_slots = head_dim / 16;
    std::bitset<kernels::kMaxHeadDim / 4> seen;
    for (int i = 0; i < n_quads; ++i) {
        if (at(i) >= n_quads || seen[std::size_t(at(i))]) {
            fail(format, KvRole::key, "does not hold every channel once");
        }
        seen[std::size_t(at(i))] = true;
    }
    int bits = 0;
    for (int slot = 0; slot < n_slots; ++slot) {
        const int width = at(n_quads + slot);
        const bool exists =
            std::find(std::begin(kTierWidths), std::end(kTierWidths), width) != std::end(kTierWidths);
        if (!exists || (slot > 0 && width > at(n_quads + slot - 1))) {
            fail(format, KvRole::key,
                 "has code width " + std::to_string(width) + " in slot " + std::to_string(slot));
        }
        bits += width;
    }
    if (bits > width_budget(format.code_bits, head_dim)) {
        fail(format, KvRole::key, "has more codes than fit, " + std::to_string(bits) + " bits");
    }
}

// Scales, which kernels take for their magnitudes, and offsets of a uniform block or of a tier.
bool parameters_are_valid(const BlockLayout& l, const std::byte* data) {
    const auto half = [data](std::size_t at) {
        fp16_t bits;
        std::memcpy(&bits, data + at, sizeof bits);
        return bits;
    };
    constexpr fp16_t kSign = 0x8000;
    bool valid = true;
    for (int i = 0; i < l.n_scales; ++i) {
        const fp16_t scale = l.scale_form == ScaleForm::byte
                                 ? scale_from_byte(std::to_integer<std::uint8_t>(data[i]))
                                 : half(std::size_t(i) * sizeof(fp16_t));
        valid = valid && fp16_is_finite(scale) && (scale & kSign) == 0;
    }
    for (int i = 0; i < l.n_offsets; ++i) {
        valid = valid && fp16_is_finite(half(l.offsets + std::size_t(i) * sizeof(fp16_t)));
    }
    return valid;
}

}  // namespace

void ColdFormat::check_block(KvRole role, int head_dim, const std::byte* block) const {
    bool valid = true;
    if (is_tiered(role == KvRole::key, code_bits, head_dim)) {
        check_header(*this, head_dim, block);
        const KeyTiers tiers = read_key_tiers(block, head_dim);
        for (const KeyTier *tier = tiers.tier, *end = tier + tiers.n_tiers; tier < end; ++tier) {
            valid = valid && parameters_are_valid(block_layout_of_tier(tier->width, tier->n_channels),
                                                  block + tier->offset);
        }
    } else {
        valid = parameters_are_valid(block_layout(role == KvRole::key, code_bits, head_dim), block);
    }
    if (!valid) fail(*this, role, "has a scale that is negative, or a scale or offset that is no number");
}

}  // namespace mixed_kv
