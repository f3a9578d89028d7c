#include "kernels/tiered_keys.h"

#include <cstring>

#include "formats/block_layout.h"

namespace mixed_kv::kernels {
namespace {

constexpr int kQuad = 4;  // neighbouring channels that stay together

template <typename Set>
auto kernel_of(const Set& set, int width) noexcept {
    switch (width) {
        case 2:
            return set.width2;
        case 3:
            return set.width3;
        case 4:
            return set.width4;
        default:
            return set.width6;
    }
}

// The query rows' quads in the order of the block, [n_rows][head_dim].
void permute_rows(const QkArgs& a, const std::uint8_t* order, float* out) noexcept {
    const int n_quads = a.keys.head_dim / kQuad;
    for (int r = 0; r < a.n_rows; ++r) {
        const float* q = a.q + r * a.q_stride;
        for (int g = 0; g < n_quads; ++g, out += kQuad) {
            std::memcpy(out, q + kQuad * order[g], kQuad * sizeof(float));
        }
    }
}

// scores (+)= q . zero, the same for all tokens of the page: a tier of channels without codes.
void add_zeros(const QkArgs& a, const float* zero) noexcept {
    const int dim = a.keys.head_dim;
    for (int r = 0; r < a.n_rows; ++r) {
        const float* q = a.q + r * a.q_stride;
        float sums[16] = {};  // as many as a slot has channels
        for (int c = 0; c < dim; c += 16) {
            for (int i = 0; i < 16; ++i) {
                sums[i] += q[c + i] * zero[c + i];
            }
        }
        for (int n = 8; n > 0; n /= 2) {
            for (int i = 0; i < n; ++i) {
                sums[i] += sums[i + n];
            }
        }
        float* scores = a.scores + std::ptrdiff_t(r) * kPage;
        for (int t = 0; t < kPage; ++t) {
            scores[t] = a.accumulate ? scores[t] + sums[0] : sums[0];
        }
    }
}

}  // namespace

std::size_t permuted_bytes(int head_dim, int n_rows) noexcept {
    return (std::size_t(n_rows) * std::size_t(head_dim) * sizeof(float) + 63) / 64 * 64;
}

void qk_tiered(const QkArgs& a, const TierQk& set) noexcept {
    const int dim = a.keys.head_dim;
    const std::byte* next = a.keys.next;
    if (next != nullptr) {
        for (std::size_t at = 0; at < formats::tier_header_bytes(dim); at += 64) {
            __builtin_prefetch(next + at);
        }
    }
    const formats::KeyTiers tiers = formats::read_key_tiers(a.keys.data, dim);
    auto* rows = reinterpret_cast<float*>(a.scratch);
    permute_rows(a, tiers.order, rows);

    QkArgs part = a;
    part.q_stride = dim;
    part.scratch += permuted_bytes(dim, a.n_rows);
    for (int i = 0; i < tiers.n_tiers; ++i) {
        const formats::KeyTier& tier = tiers.tier[i];
        part.keys.data = a.keys.data + tier.offset;
        part.keys.head_dim = tier.n_channels;
        // The next page's tiers have other sizes, its block in all about the same.
        part.keys.next = next != nullptr ? next + tier.offset : nullptr;
        part.q = rows + tier.first;
        if (tier.width == 0) {
            float zero[kMaxHeadDim];
            set.fp16_to_fp32(reinterpret_cast<const std::uint16_t*>(part.keys.data), zero, tier.n_channels);
            add_zeros(part, zero);
        } else {
            kernel_of(set, tier.width)(part);
        }
        part.accumulate = true;
    }
}

void decode_key_tiered(const DecodeArgs& a, const TierDecode& set) noexcept {
    const formats::KeyTiers tiers = formats::read_key_tiers(a.page.data, a.page.head_dim);
    DecodeArgs part = a;
    for (int i = 0; i < tiers.n_tiers; ++i) {
        const formats::KeyTier& tier = tiers.tier[i];
        part.page.data = a.page.data + tier.offset;
        part.page.head_dim = tier.n_channels;
        const std::uint8_t* order = tiers.order + tier.first / kQuad;
        if (tier.width != 0) {
            kernel_of(set, tier.width)(part, order);
            continue;
        }
        float zero[kMaxHeadDim];
        set.fp16_to_fp32(reinterpret_cast<const std::uint16_t*>(part.page.data), zero, tier.n_channels);
        for (int place = 0; place < tier.n_channels; ++place) {
            const int channel = kQuad * order[place / kQuad] + place % kQuad;
            for (int t = 0; t < kPage; ++t) {
                a.out[a.transposed ? channel * a.out_stride + t : t * a.out_stride + channel] = zero[place];
            }
        }
    }
}

}  // namespace mixed_kv::kernels
