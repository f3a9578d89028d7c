// Encoders of keys: four channels, a group, at a time.

#include "formats/format_list.h"
#include "formats/key_tiers.h"
#include "kernels/neon/encode_planes.h"
#include "kernels/neon/neon.h"

namespace mixed_kv::kernels::neon {
namespace {

using shared::Counted;

// The planes of one channel group from its codes [64 tokens][4 channels].
template <int kBits>
inline void store_key_group(std::byte* block, const BlockLayout& l, int g,
                            const std::uint8_t* codes) noexcept {
    constexpr formats::CodePlanes planes = formats::code_planes(kBits);
    uint8x16_t c[16];  // tokens 4i..
    for (int i = 0; i < 16; ++i) {
        c[i] = vld1q_u8(codes + i * 16);
    }
    for (int i = 0; i < 16; ++i) {
        if constexpr (planes.byte) {
            store(block + l.byte_plane + std::size_t(g) * 256 + i * 16, c[i]);
        }
        if constexpr (planes.single) {
            store_single<planes.single_shift>(block + l.single_plane + std::size_t(g) * 32 + i * 2, c[i]);
        }
    }
    if constexpr (planes.nibble) {
        for (int i = 0; i < 8; ++i) {
            const int low = i / 4 * 8 + i % 4;
            store(block + l.nibble_plane + std::size_t(g) * 128 + i * 16, vsliq_n_u8(c[low], c[low + 4], 4));
        }
    }
    if constexpr (planes.pair) {
        constexpr int kShift = planes.pair_shift;
        for (int i = 0; i < 4; ++i) {
            uint8x16_t x = pair_of<kShift>(c[i]);
            x = vsliq_n_u8(x, pair_of<kShift>(c[i + 4]), 2);
            x = vsliq_n_u8(x, pair_of<kShift>(c[i + 8]), 4);
            x = vsliq_n_u8(x, pair_of<kShift>(c[i + 12]), 6);
            store(block + l.pair_plane + std::size_t(g) * 64 + i * 16, x);
        }
    }
}

// encode_channels() of the scalar codec.
template <int kBits, ScaleForm kForm>
inline void encode_channels(const EncodeArgs& a, const Counted& tokens, const BlockLayout& l,
                            const std::uint8_t* order, int n_channels, std::byte* block) noexcept {
    const float32x4_t max_code = vdupq_n_f32(static_cast<float>((1 << kBits) - 1));
    for (int g = 0; 4 * g < n_channels; ++g) {
        const int n = n_channels - 4 * g < 4 ? n_channels - 4 * g : 4;
        float x[kPage * 4];  // [token][4 channels]
        const std::uint16_t* row = a.rows + 4 * (order != nullptr ? order[g] : g);
        for (int t = 0; t < kPage; ++t, row += a.row_stride) {
            vst1q_f32(x + t * 4, n == 4 ? Lanes::load_halves(row) : Lanes::load_halves(row, n));
        }
        const auto affine = shared::choose_affine<Lanes, kBits, false, kForm>(x, tokens.list(), tokens.n);
        shared::store_scales<Lanes, kForm>(block, 4 * g, affine.scale16);
        Lanes::store_h(block + l.offsets + std::size_t(g) * 8, affine.zero16);
        std::uint8_t codes[kPage * 4];
        make_codes(x, kPage, affine, max_code, codes);
        store_key_group<kBits>(block, l, g, codes);
    }
}

template <int kWidth>
inline void encode_tier(const EncodeArgs& a, const Counted& tokens, const formats::KeyTier& tier,
                        const std::uint8_t* order) noexcept {
    encode_channels<kWidth, ScaleForm::byte>(a, tokens,
                                             formats::block_layout_of_tier(kWidth, tier.n_channels), order,
                                             tier.n_channels, a.block + tier.offset);
}

void encode_tiers(int code_bits, const EncodeArgs& a, const Counted& tokens) noexcept {
    shared::Spreads spreads;
    shared::find_spreads<Lanes>(a, tokens, spreads);
    formats::choose_key_tiers(code_bits, {spreads.ranges, spreads.gaps}, a.head_dim, a.block);
    const formats::KeyTiers tiers = formats::read_key_tiers(a.block, a.head_dim);
    for (int i = 0; i < tiers.n_tiers; ++i) {
        const formats::KeyTier& tier = tiers.tier[i];
        const std::uint8_t* order = tiers.order + tier.first / 4;
        switch (tier.width) {
            case 2:
                encode_tier<2>(a, tokens, tier, order);
                break;
            case 3:
                encode_tier<3>(a, tokens, tier, order);
                break;
            case 4:
                encode_tier<4>(a, tokens, tier, order);
                break;
            case 6:
                encode_tier<6>(a, tokens, tier, order);
                break;
            default:  // zero points alone
                for (int g = 0; 4 * g < tier.n_channels; ++g) {
                    const float32x4_t mean = vld1q_f32(spreads.means + order[g] * 4);
                    Lanes::store_h(a.block + tier.offset + std::size_t(g) * 8, Lanes::to_halves(mean));
                }
        }
    }
}

template <int kBits>
bool encode_key(const EncodeArgs& a) noexcept {
    if (shared::largest_magnitude(a) >= shared::kNotFinite) {
        return false;
    }
    std::memset(a.block, 0, formats::block_bytes(true, kBits, a.head_dim));
    Counted tokens;
    shared::list_counted(a.counted, tokens);
    if (formats::is_tiered(true, kBits, a.head_dim)) {
        encode_tiers(kBits, a, tokens);
    } else {
        const BlockLayout l = formats::block_layout(true, kBits, a.head_dim);
        encode_channels<kBits, formats::is_narrow(kBits) ? ScaleForm::byte : ScaleForm::half>(
            a, tokens, l, nullptr, a.head_dim, a.block);
    }
    return true;
}

}  // namespace

#define MIXED_KV_DEFINE_FORMAT(name, bits) \
    bool encode_key_##name##_neon(const EncodeArgs& args) noexcept { return encode_key<bits>(args); }
MIXED_KV_FOR_EACH_COLD_FORMAT(MIXED_KV_DEFINE_FORMAT)

}  // namespace mixed_kv::kernels::neon
