// Encoders of keys.

#include "formats/format_list.h"
#include "formats/key_tiers.h"
#include "kernels/avx2/encode.h"

namespace mixed_kv::kernels::avx2 {
namespace {

// The planes of one channel group from its codes [64 tokens][4 channels].
template <int kBits>
inline void store_key_group(std::byte* block, const BlockLayout& l, int g,
                            const std::uint8_t* codes) noexcept {
    constexpr formats::CodePlanes planes = formats::code_planes(kBits);
    __m256i c[8];  // tokens 8i..
    for (int i = 0; i < 8; ++i) {
        c[i] = load_i(codes + i * 32);
    }
    for (int i = 0; i < 8; ++i) {
        if constexpr (planes.byte) {
            store(block + l.byte_plane + std::size_t(g) * 256 + i * 32, c[i]);
        }
        if constexpr (planes.single) {
            store_single<planes.single_shift>(block + l.single_plane + std::size_t(g) * 32 + i * 4, c[i]);
        }
    }
    if constexpr (planes.nibble) {
        for (int i = 0; i < 4; ++i) {
            const int low = i / 2 * 4 + i % 2;
            const __m256i high = _mm256_slli_epi16(field(c[low + 2], 0, 15), 4);
            store(block + l.nibble_plane + std::size_t(g) * 128 + i * 32,
                  _mm256_or_si256(field(c[low], 0, 15), high));
        }
    }
    if constexpr (planes.pair) {
        for (int j = 0; j < 2; ++j) {
            __m256i x = field(c[j], planes.pair_shift, 3);
            x = _mm256_or_si256(x, _mm256_slli_epi16(field(c[j + 2], planes.pair_shift, 3), 2));
            x = _mm256_or_si256(x, _mm256_slli_epi16(field(c[j + 4], planes.pair_shift, 3), 4));
            x = _mm256_or_si256(x, _mm256_slli_epi16(field(c[j + 6], planes.pair_shift, 3), 6));
            store(block + l.pair_plane + std::size_t(g) * 64 + j * 32, x);
        }
    }
}

inline __m256 load_quads(const std::uint16_t* first, const std::uint16_t* second) noexcept {
    return _mm256_cvtph_ps(_mm_unpacklo_epi64(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(first)),
                                              _mm_loadl_epi64(reinterpret_cast<const __m128i*>(second))));
}

// Tokens that take part in choosing scales; list: null for all of them.
struct Counted {
    int n = 0;
    std::uint8_t index[kPage];
    const std::uint8_t* list() const noexcept { return n == kPage ? nullptr : index; }
};

inline void list_counted(std::uint64_t counted, Counted& tokens) noexcept {
    for (int t = 0; t < kPage; ++t) {
        tokens.index[tokens.n] = static_cast<std::uint8_t>(t);
        tokens.n += static_cast<int>(counted >> t & 1);
    }
}

// encode_channels() of the scalar codec.
template <int kBits, ScaleForm kForm>
inline void encode_channels(const EncodeArgs& a, const Counted& tokens, const BlockLayout& l,
                            const std::uint8_t* order, int n_channels, std::byte* block) noexcept {
    const __m256 max_code = _mm256_set1_ps(static_cast<float>((1 << kBits) - 1));
    for (int c = 0; c < n_channels; c += 8) {
        const int n = n_channels - c < 8 ? n_channels - c : 8;
        alignas(32) float x[kPage * 8];  // [token][8 channels]
        if (order != nullptr) {          // tiers: multiples of 16 channels
            const std::uint16_t* first = a.rows + order[c / 4] * 4;
            const std::uint16_t* second = a.rows + order[c / 4 + 1] * 4;
            for (int t = 0; t < kPage; ++t) {
                _mm256_store_ps(x + t * 8, load_quads(first + t * a.row_stride, second + t * a.row_stride));
            }
        } else {
            for (int t = 0; t < kPage; ++t) {
                const std::uint16_t* row = a.rows + t * a.row_stride + c;
                _mm256_store_ps(x + t * 8, n == 8 ? load_halves(row) : load_halves(row, n));
            }
        }
        const Affine8 affine = choose_affine<kBits, false, kForm>(x, tokens.list(), tokens.n);
        store_scales<kForm>(block, c, affine.scale16);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(block + l.offsets + std::size_t(c) * 2), affine.zero16);
        alignas(32) std::uint8_t codes[2 * kPage * 4];
        make_codes(x, kPage, affine, max_code, codes);
        store_key_group<kBits>(block, l, c / 4, codes);
        if (n > 4) {
            store_key_group<kBits>(block, l, c / 4 + 1, codes + kPage * 4);
        }
    }
}

// The smallest difference but 0 of two sampled rows, in eight channels from rows + c on; 0 if there is none.
inline __m256 smallest_gap(const EncodeArgs& a, const Counted& tokens, int c) noexcept {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    __m256 x[formats::kSampledRows];
    for (int i = 0; i < formats::kSampledRows; ++i) {
        x[i] = load_halves(a.rows + tokens.index[i * tokens.n / formats::kSampledRows] * a.row_stride + c);
    }
    // Magnitudes as integers less 1, so that 0 is the largest of all.
    const __m256i one = _mm256_set1_epi32(1);
    __m256i smallest = _mm256_set1_epi32(-1);
    for (int i = 1; i < formats::kSampledRows; ++i) {
        for (int j = 0; j < i; ++j) {
            const __m256 gap = _mm256_andnot_ps(sign, _mm256_sub_ps(x[i], x[j]));
            smallest = _mm256_min_epu32(smallest, _mm256_sub_epi32(_mm256_castps_si256(gap), one));
        }
    }
    return _mm256_castsi256_ps(_mm256_add_epi32(smallest, one));
}

struct Spreads {
    float ranges[kMaxHeadDim], means[kMaxHeadDim], gaps[kMaxHeadDim];
};

// spread_of() of the scalar codec for every channel.
inline void find_spreads(const EncodeArgs& a, const Counted& tokens, Spreads& spreads) noexcept {
    const __m256 share = _mm256_set1_ps(1.0f / static_cast<float>(tokens.n > 0 ? tokens.n : 1));
    for (int c = 0; c < a.head_dim; c += 8) {
        __m256 lo = _mm256_set1_ps(std::numeric_limits<float>::infinity());
        __m256 hi = _mm256_xor_ps(lo, _mm256_set1_ps(-0.0f)), sum = _mm256_setzero_ps();
        for (int i = 0; i < tokens.n; ++i) {
            const __m256 v = load_halves(a.rows + tokens.index[i] * a.row_stride + c);
            lo = _mm256_min_ps(v, lo);
            hi = _mm256_max_ps(v, hi);
            sum = _mm256_add_ps(sum, v);
        }
        const __m256 range = tokens.n > 0 ? _mm256_sub_ps(hi, lo) : _mm256_setzero_ps();
        _mm256_storeu_ps(spreads.ranges + c, range);
        _mm256_storeu_ps(spreads.means + c, _mm256_mul_ps(sum, share));
        __m256 gap = _mm256_setzero_ps();
        if (tokens.n >= formats::kSampledRows) {
            gap = smallest_gap(a, tokens, c);
            gap = _mm256_blendv_ps(gap, range, _mm256_cmp_ps(gap, _mm256_setzero_ps(), _CMP_EQ_OQ));
        }
        _mm256_storeu_ps(spreads.gaps + c, gap);
    }
}

void encode_tiers(int code_bits, const EncodeArgs& a, const Counted& tokens) noexcept {
    Spreads spreads;
    find_spreads(a, tokens, spreads);
    formats::choose_key_tiers(code_bits, {spreads.ranges, spreads.gaps}, a.head_dim, a.block);
    const formats::KeyTiers tiers = formats::read_key_tiers(a.block, a.head_dim);
    for (int i = 0; i < tiers.n_tiers; ++i) {
        const formats::KeyTier& tier = tiers.tier[i];
        const std::uint8_t* order = tiers.order + tier.first / 4;
        const BlockLayout l = formats::block_layout_of_tier(tier.width, tier.n_channels);
        std::byte* data = a.block + tier.offset;
        switch (tier.width) {
            case 2:
                encode_channels<2, ScaleForm::byte>(a, tokens, l, order, tier.n_channels, data);
                break;
            case 3:
                encode_channels<3, ScaleForm::byte>(a, tokens, l, order, tier.n_channels, data);
                break;
            case 4:
                encode_channels<4, ScaleForm::byte>(a, tokens, l, order, tier.n_channels, data);
                break;
            case 6:
                encode_channels<6, ScaleForm::byte>(a, tokens, l, order, tier.n_channels, data);
                break;
            default:
                for (int c = 0; c < tier.n_channels; c += 8) {
                    const __m128 first = _mm_loadu_ps(spreads.means + order[c / 4] * 4);
                    const __m128 second = _mm_loadu_ps(spreads.means + order[c / 4 + 1] * 4);
                    _mm_storeu_si128(reinterpret_cast<__m128i*>(data + std::size_t(c) * 2),
                                     to_halves(_mm256_set_m128(second, first)));
                }
        }
    }
}

template <int kBits>
bool encode_key(const EncodeArgs& a) noexcept {
    if (largest_magnitude(a) >= 0x7c00) {
        return false;
    }
    std::memset(a.block, 0, formats::block_bytes(true, kBits, a.head_dim));
    Counted tokens;
    list_counted(a.counted, tokens);
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
    bool encode_key_##name##_avx2(const EncodeArgs& args) noexcept { return encode_key<bits>(args); }
MIXED_KV_FOR_EACH_COLD_FORMAT(MIXED_KV_DEFINE_FORMAT)

}  // namespace mixed_kv::kernels::avx2
