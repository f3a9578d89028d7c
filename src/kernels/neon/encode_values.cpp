// Encoders of values: four tokens at a time.

#include "formats/format_list.h"
#include "kernels/neon/encode_planes.h"
#include "kernels/neon/neon.h"

namespace mixed_kv::kernels::neon {
namespace {

// The planes of tokens 4 quad.. + 3 from their codes [dim][4 tokens]. A byte of the nibble plane holds two
// quads, one of the pair plane four: each completes what the one before it wrote.
template <int kBits>
inline void store_value_quad(std::byte* block, const BlockLayout& l, int quad,
                             const std::uint8_t* codes) noexcept {
    constexpr formats::CodePlanes planes = formats::code_planes(kBits);
    const std::size_t row = std::size_t(l.dim) * 4;
    for (int v = 0; v < l.dim / 4; ++v) {
        const uint8x16_t c = vld1q_u8(codes + v * 16);
        if constexpr (planes.byte) {
            store(block + l.byte_plane + quad * row + v * 16, c);
        }
        if constexpr (planes.nibble) {
            std::byte* out = block + l.nibble_plane + quad / 2 * row + v * 16;
            store(out, quad % 2 == 0 ? vandq_u8(c, vdupq_n_u8(15)) : vsliq_n_u8(load_bytes(out), c, 4));
        }
        if constexpr (planes.pair) {
            std::byte* out = block + l.pair_plane + quad / 4 * row + v * 16;
            const uint8x16_t pair = vandq_u8(pair_of<planes.pair_shift>(c), vdupq_n_u8(3));
            const int8x16_t shift = vdupq_n_s8(static_cast<std::int8_t>(2 * (quad % 4)));
            store(out, vorrq_u8(load_bytes(out), vshlq_u8(pair, shift)));
        }
        if constexpr (planes.single) {
            store_single<planes.single_shift>(
                block + l.single_plane + std::size_t(quad) * (l.dim / 2) + v * 2, c);
        }
    }
}

// x[channel][4]: four tokens from `token`, transposed; uncounted tokens read as zero.
inline void load_tokens(const EncodeArgs& a, int token, float* x) noexcept {
    for (int c = 0; c < a.head_dim; c += 4) {
        const int n = a.head_dim - c < 4 ? a.head_dim - c : 4;
        float32x4_t r[4];
        for (int t = 0; t < 4; ++t) {
            const std::uint16_t* row = a.rows + (token + t) * a.row_stride + c;
            if ((a.counted >> (token + t) & 1) == 0) {
                r[t] = vdupq_n_f32(0.0f);
            } else {
                r[t] = n == 4 ? Lanes::load_halves(row) : Lanes::load_halves(row, n);
            }
        }
        Lanes::transpose(r);
        for (int i = 0; i < n; ++i) vst1q_f32(x + (c + i) * 4, r[i]);
    }
}

// x[channel][4]: four tokens from `token`, rotated, become differences from the means; uncounted ones stay
// zero.
inline void subtract_means(const EncodeArgs& a, int token, const std::uint16_t* means, float* x) noexcept {
    std::uint32_t counted[4];
    for (int t = 0; t < 4; ++t) {
        counted[t] = (a.counted >> (token + t) & 1) != 0 ? 0xffffffffu : 0;
    }
    const uint32x4_t mask = vld1q_u32(counted);
    for (int c = 0; c < a.head_dim; ++c) {
        const float32x4_t mean = Lanes::from_halves(vdup_n_u16(means[c]));
        vst1q_f32(x + c * 4, vsubq_f32(vld1q_f32(x + c * 4), Lanes::keep(mask, mean)));
    }
}

template <int kBits>
bool encode_value(const EncodeArgs& a) noexcept {
    constexpr ScaleForm kForm = formats::is_narrow(kBits) ? ScaleForm::byte : ScaleForm::half;
    constexpr int kResiduals = 8;  // sums of tokens t % 8, see formats::value_offsets()
    const std::uint16_t largest = shared::largest_magnitude(a);
    if (largest >= shared::kNotFinite) {
        return false;
    }
    const int size = formats::hadamard_length(a.head_dim);
    if (shared::may_leave_binary16(largest, size)) {
        return formats::encode_value(kBits, a);
    }
    const BlockLayout l = formats::block_layout(false, kBits, a.head_dim);
    std::memset(a.block, 0, l.bytes);
    const float32x4_t max_code = vdupq_n_f32(static_cast<float>((1 << kBits) - 1));
    float rotated[kMaxHeadDim];
    std::uint16_t means[kMaxHeadDim], offsets[kMaxHeadDim];
    const int n_rows = shared::means_of_rows<Lanes>(a, rotated, means);
    float residuals[kMaxHeadDim * kResiduals];
    std::memset(residuals, 0, std::size_t(a.head_dim) * kResiduals * sizeof residuals[0]);
    float x[kMaxHeadDim * 4];  // [channel][4 tokens]
    std::uint8_t codes[kMaxHeadDim * 4];
    for (int quad = 0; quad < kPage / 4; ++quad) {
        load_tokens(a, quad * 4, x);
        shared::rotate<Lanes>(x, a.head_dim, size);
        subtract_means(a, quad * 4, means, x);
        const auto affine = shared::choose_affine<Lanes, kBits, true, kForm>(x, nullptr, a.head_dim);
        shared::store_scales<Lanes, kForm>(a.block, quad * 4, affine.scale16);
        for (int c = a.head_dim; c < l.dim; ++c) vst1q_f32(x + c * 4, vdupq_n_f32(0.0f));
        make_codes(x, l.dim, affine, max_code, codes);
        shared::add_residuals<Lanes>(x, a.head_dim, affine, max_code, residuals + quad % 2 * 4, kResiduals);
        // The padding's codes are zero.
        std::memset(codes + a.head_dim * 4, 0, std::size_t(l.dim - a.head_dim) * 4);
        store_value_quad<kBits>(a.block, l, quad, codes);
    }
    formats::value_offsets(rotated, residuals, a.head_dim, n_rows, means, offsets);
    std::memcpy(a.block + l.offsets, offsets, std::size_t(a.head_dim) * sizeof offsets[0]);
    return true;
}

}  // namespace

#define MIXED_KV_DEFINE_FORMAT(name, bits) \
    bool encode_value_##name##_neon(const EncodeArgs& args) noexcept { return encode_value<bits>(args); }
MIXED_KV_FOR_EACH_COLD_FORMAT(MIXED_KV_DEFINE_FORMAT)

}  // namespace mixed_kv::kernels::neon
