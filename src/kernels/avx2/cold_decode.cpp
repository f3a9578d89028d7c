// Decodes cold pages to float: 8 lanes of four codes at a time. A lane is a token and the four are channels
// for keys; for values a lane is a channel and the four are tokens. The natural order of the output therefore
// is [head_dim][64] for keys and [64][head_dim] for values; the other one is written element by element.

#include "formats/format_list.h"
#include "kernels/avx2/avx2.h"
#include "kernels/avx2/codes.h"
#include "kernels/tiered_keys.h"

namespace mixed_kv::kernels::avx2 {
namespace {

using formats::BlockLayout;

struct Affine {
    float scale[kMaxHeadDim], offset[kMaxHeadDim];
};

inline void load_affine(const std::byte* block, const BlockLayout& l, Affine& affine) noexcept {
    for (int i = 0; i < l.n_scales; i += 8) {
        _mm256_storeu_ps(affine.scale + i, l.scale_form == formats::ScaleForm::byte
                                               ? load_byte_scales(block + i)
                                               : load_halves(block + std::size_t(i) * 2));
    }
    for (int i = 0; i < l.n_offsets; i += 8) {
        _mm256_storeu_ps(affine.offset + i, load_halves(block + l.offsets + std::size_t(i) * 2));
    }
}

// Eight lanes of four codes: lane i, sub-code k is out[(first_sub + k) * sub_stride + (first_lane + i) *
// lane_stride] = scale[first_sub + k] * (code - shift) + an offset, for n_subs and n_lanes of them. Keys: the
// sub-code's channel has the offset; values: the lane's.
struct Target {
    float* out;
    std::ptrdiff_t sub_stride, lane_stride;
};

template <bool kIsKey>
inline void put(__m256i codes, const Affine& affine, float shift, const Target& to, int first_sub, int n_subs,
                int first_lane, int n_lanes) noexcept {
    for (int k = 0; k < n_subs; ++k) {
        const __m256i code =
            _mm256_and_si256(_mm256_srl_epi32(codes, _mm_cvtsi32_si128(8 * k)), _mm256_set1_epi32(255));
        // Two roundings, as the definition has them: no fused multiply-add.
        const __m256 level = _mm256_sub_ps(_mm256_cvtepi32_ps(code), _mm256_set1_ps(shift));
        const __m256 offset = kIsKey ? _mm256_set1_ps(affine.offset[first_sub + k])
                                     : _mm256_loadu_ps(affine.offset + first_lane);
        const __m256 x =
            _mm256_add_ps(_mm256_mul_ps(level, _mm256_set1_ps(affine.scale[first_sub + k])), offset);
        float* out = to.out + (first_sub + k) * to.sub_stride + first_lane * to.lane_stride;
        if (to.lane_stride == 1 && n_lanes == 8) {
            _mm256_storeu_ps(out, x);
        } else {
            alignas(32) float lanes[8];
            _mm256_store_ps(lanes, x);
            for (int i = 0; i < n_lanes; ++i) {
                out[i * to.lane_stride] = lanes[i];
            }
        }
    }
}

template <int kBits, int kHalf>
inline void key_half(const DecodeArgs& a, const BlockLayout& l, const Affine& affine, const Target& to,
                     int g) noexcept {
    const int n = a.page.head_dim - 4 * g < 4 ? a.page.head_dim - 4 * g : 4;
    for (int j = 0; j < 2; ++j) {
        const CodePair codes = load_codes<kBits, kHalf>(key_planes(a.page.data, l, g, kHalf, j));
        put<true>(codes.a, affine, 0.0f, to, 4 * g, n, 32 * kHalf + 8 * j, 8);
        put<true>(codes.b, affine, 0.0f, to, 4 * g, n, 32 * kHalf + 16 + 8 * j, 8);
    }
}

template <int kBits, int kOdd>
inline void value_rows(const DecodeArgs& a, const BlockLayout& l, const Affine& affine, const Target& to,
                       int u) noexcept {
    for (int v = 0; v * 8 < a.page.head_dim; ++v) {
        const int n = a.page.head_dim - 8 * v < 8 ? a.page.head_dim - 8 * v : 8;
        const CodePair codes = load_codes<kBits, kOdd>(value_planes(a.page.data, l, u, v));
        put<false>(codes.a, affine, formats::middle_code(kBits), to, 8 * u, 4, 8 * v, n);
        put<false>(codes.b, affine, formats::middle_code(kBits), to, 8 * u + 4, 4, 8 * v, n);
    }
}

// order: see TierDecode; null: the block's channels are the head's.
template <int kBits>
void decode_uniform(const DecodeArgs& a, const BlockLayout& l, const std::uint8_t* order) noexcept {
    Affine affine;
    load_affine(a.page.data, l, affine);
    const Target whole = a.transposed ? Target{a.out, a.out_stride, 1} : Target{a.out, 1, a.out_stride};
    for (int g = 0; g < l.dim / 4; ++g) {
        Target to = whole;
        if (order != nullptr) to.out += 4 * (order[g] - g) * to.sub_stride;
        key_half<kBits, 0>(a, l, affine, to, g);
        key_half<kBits, 1>(a, l, affine, to, g);
    }
}

template <int kBits>
void decode_tier(const DecodeArgs& a, const std::uint8_t* order) noexcept {
    decode_uniform<kBits>(a, formats::block_layout_of_tier(kBits, a.page.head_dim), order);
}
constexpr TierDecode kTierDecode = {decode_tier<2>, decode_tier<3>, decode_tier<4>, decode_tier<6>,
                                    fp16_to_fp32};

template <int kBits>
void decode_key(const DecodeArgs& a) noexcept {
    if (formats::is_tiered(true, kBits, a.page.head_dim)) {
        decode_key_tiered(a, kTierDecode);
    } else {
        decode_uniform<kBits>(a, formats::block_layout(true, kBits, a.page.head_dim), nullptr);
    }
}

template <int kBits>
void decode_value(const DecodeArgs& a) noexcept {
    const BlockLayout l = formats::block_layout(false, kBits, a.page.head_dim);
    Affine affine;
    load_affine(a.page.data, l, affine);
    const Target to = a.transposed ? Target{a.out, 1, a.out_stride} : Target{a.out, a.out_stride, 1};
    for (int u = 0; u < kPage / 8; u += 2) {
        value_rows<kBits, 0>(a, l, affine, to, u);
        value_rows<kBits, 1>(a, l, affine, to, u + 1);
    }
}

}  // namespace

#define MIXED_KV_DEFINE_FORMAT(name, bits)                                                     \
    void decode_key_##name##_avx2(const DecodeArgs& args) noexcept { decode_key<bits>(args); } \
    void decode_value_##name##_avx2(const DecodeArgs& args) noexcept { decode_value<bits>(args); }
MIXED_KV_FOR_EACH_COLD_FORMAT(MIXED_KV_DEFINE_FORMAT)

}  // namespace mixed_kv::kernels::avx2
