// Encoders of values.

#include "formats/format_list.h"
#include "kernels/avx2/encode.h"

namespace mixed_kv::kernels::avx2 {
namespace {

// The planes of tokens 8u..8u+7 from their codes [2][dim][4 tokens]. The pair plane holds 16 tokens a byte:
// it is completed by the odd u.
template <int kBits>
inline void store_value_tokens(std::byte* block, const BlockLayout& l, int u,
                               const std::uint8_t* codes) noexcept {
    constexpr formats::CodePlanes planes = formats::code_planes(kBits);
    const std::size_t row = std::size_t(l.dim) * 4;
    for (int v = 0; v < l.dim / 8; ++v) {
        const __m256i a = load_i(codes + v * 32), b = load_i(codes + row + v * 32);
        if constexpr (planes.byte) {
            store(block + l.byte_plane + 2 * u * row + v * 32, a);
            store(block + l.byte_plane + (2 * u + 1) * row + v * 32, b);
        }
        if constexpr (planes.nibble) {
            store(block + l.nibble_plane + u * row + v * 32,
                  _mm256_or_si256(field(a, 0, 15), _mm256_slli_epi16(field(b, 0, 15), 4)));
        }
        if constexpr (planes.pair) {
            std::byte* out = block + l.pair_plane + u / 2 * row + v * 32;
            __m256i x = _mm256_or_si256(field(a, planes.pair_shift, 3),
                                        _mm256_slli_epi16(field(b, planes.pair_shift, 3), 2));
            if (u % 2 != 0) {
                x = _mm256_or_si256(load_i(out), _mm256_slli_epi16(x, 4));
            }
            store(out, x);
        }
        if constexpr (planes.single) {
            std::byte* out = block + l.single_plane + std::size_t(2 * u) * (l.dim / 2) + v * 4;
            store_single<planes.single_shift>(out, a);
            store_single<planes.single_shift>(out + l.dim / 2, b);
        }
    }
}

// Rotates x[n][8 tokens] along n: see rotate() of the scalar codec.
inline void rotate(float* x, int n, int size) noexcept {
    if (size == 1) {
        return;
    }
    const __m256 norm = _mm256_set1_ps(formats::hadamard_norm(size));
    for (float* group = x; group < x + n * 8; group += size * 8) {
        int h = 1;
        for (; h * 4 <= size; h *= 4) {  // two distances at once: half the loads and stores, the same sums
            const bool last = h * 4 == size;
            for (int i = 0; i < size; i += 4 * h) {
                for (int j = i; j < i + h; ++j) {
                    float* p = group + j * 8;
                    const __m256 a = _mm256_loadu_ps(p), b = _mm256_loadu_ps(p + h * 8);
                    const __m256 c = _mm256_loadu_ps(p + 2 * h * 8), d = _mm256_loadu_ps(p + 3 * h * 8);
                    const __m256 a1 = _mm256_add_ps(a, b), b1 = _mm256_sub_ps(a, b);
                    const __m256 c1 = _mm256_add_ps(c, d), d1 = _mm256_sub_ps(c, d);
                    __m256 y[4] = {_mm256_add_ps(a1, c1), _mm256_add_ps(b1, d1), _mm256_sub_ps(a1, c1),
                                   _mm256_sub_ps(b1, d1)};
                    for (int k = 0; k < 4; ++k) {
                        _mm256_storeu_ps(p + k * h * 8, last ? _mm256_mul_ps(y[k], norm) : y[k]);
                    }
                }
            }
        }
        if (h < size) {
            for (int j = 0; j < h; ++j) {
                float* p = group + j * 8;
                const __m256 a = _mm256_loadu_ps(p), b = _mm256_loadu_ps(p + h * 8);
                _mm256_storeu_ps(p, _mm256_mul_ps(_mm256_add_ps(a, b), norm));
                _mm256_storeu_ps(p + h * 8, _mm256_mul_ps(_mm256_sub_ps(a, b), norm));
            }
        }
    }
}

// x[channel][8]: eight tokens from `token`, transposed; uncounted tokens read as zero.
inline void load_tokens(const EncodeArgs& a, int token, float* x) noexcept {
    for (int c = 0; c < a.head_dim; c += 8) {
        const int n = a.head_dim - c < 8 ? a.head_dim - c : 8;
        __m256 r[8];
        for (int t = 0; t < 8; ++t) {
            const std::uint16_t* row = a.rows + (token + t) * a.row_stride + c;
            if ((a.counted >> (token + t) & 1) == 0) {
                r[t] = _mm256_setzero_ps();
            } else {
                r[t] = n == 8 ? load_halves(row) : load_halves(row, n);
            }
        }
        transpose(r);
        for (int i = 0; i < n; ++i) {
            _mm256_storeu_ps(x + (c + i) * 8, r[i]);
        }
    }
}

// The means of the counted rows, rotated, as floats and as stored: rotated_means() of the definition over
// sums in its order. Returns the number of rows.
inline int means_of_rows(const EncodeArgs& a, float* rotated, std::uint16_t* means) noexcept {
    int n_rows = 0;
    for (int c = 0; c < a.head_dim; c += 8) {
        const int n = a.head_dim - c < 8 ? a.head_dim - c : 8;
        __m256 sum = _mm256_setzero_ps();
        n_rows = 0;
        for (int t = 0; t < kPage; ++t) {
            if ((a.counted >> t & 1) == 0) {
                continue;
            }
            ++n_rows;
            const std::uint16_t* row = a.rows + t * a.row_stride + c;
            sum = _mm256_add_ps(sum, n == 8 ? load_halves(row) : load_halves(row, n));
        }
        _mm256_store_ps(rotated + c, sum);
    }
    (void)formats::rotated_means(rotated, a.head_dim, n_rows, means);
    return n_rows;
}

// residuals[channel][8 lanes] += scale * (code - shift) of eight tokens.
inline void add_residuals(const float* x, int n, const Affine8& affine, __m256 max_code,
                          float* residuals) noexcept {
    const __m256 scale = _mm256_cvtph_ps(affine.scale16);
    for (int c = 0; c < n; ++c) {
        const __m256 t = clamp_code(position(_mm256_load_ps(x + c * 8), affine), max_code);
        const __m256 code = _mm256_round_ps(t, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
        const __m256 add = _mm256_mul_ps(_mm256_sub_ps(code, affine.shift), scale);
        _mm256_store_ps(residuals + c * 8, _mm256_add_ps(_mm256_load_ps(residuals + c * 8), add));
    }
}

// x[channel][8]: eight tokens from `token`, rotated, become differences from the means; uncounted ones stay
// zero.
inline void subtract_means(const EncodeArgs& a, int token, const std::uint16_t* means, float* x) noexcept {
    alignas(32) std::int32_t counted[8];
    for (int t = 0; t < 8; ++t) {
        counted[t] = (a.counted >> (token + t) & 1) != 0 ? -1 : 0;
    }
    const __m256 mask = _mm256_castsi256_ps(load_i(counted));
    for (int c = 0; c < a.head_dim; ++c) {
        const __m256 mean = _mm256_cvtph_ps(_mm_set1_epi16(static_cast<short>(means[c])));
        _mm256_storeu_ps(x + c * 8, _mm256_sub_ps(_mm256_loadu_ps(x + c * 8), _mm256_and_ps(mean, mask)));
    }
}

template <int kBits>
bool encode_value(const EncodeArgs& a) noexcept {
    const std::uint16_t largest = largest_magnitude(a);
    if (largest >= 0x7c00) {
        return false;
    }
    const int size = formats::hadamard_length(a.head_dim);
    // Rotation grows a value at most sqrt(size) times and the difference from a mean is at most twice as
    // large, beyond binary16's range perhaps. Scales and means surely fit below 2048 (sizes to 64) or 256 (to
    // 1024); above, the definition decides before anything is written.
    const std::uint16_t safe[] = {0x7800, 0x6800, 0x5c00};  // 32768, 2048, 256
    if (largest > safe[size == 1 ? 0 : size <= 64 ? 1 : 2]) {
        return formats::encode_value(kBits, a);
    }
    const BlockLayout l = formats::block_layout(false, kBits, a.head_dim);
    std::memset(a.block, 0, l.bytes);
    const __m256 max_code = _mm256_set1_ps(static_cast<float>((1 << kBits) - 1));
    alignas(32) float rotated[kMaxHeadDim];
    std::uint16_t means[kMaxHeadDim], offsets[kMaxHeadDim];
    const int n_rows = means_of_rows(a, rotated, means);
    alignas(32) float residuals[kMaxHeadDim * 8];  // [channel][token % 8]
    std::memset(residuals, 0, std::size_t(a.head_dim) * 8 * sizeof residuals[0]);
    alignas(32) float x[kMaxHeadDim * 8];  // [channel][8 tokens]
    alignas(32) std::uint8_t codes[2 * kMaxHeadDim * 4];
    for (int u = 0; u < kPage / 8; ++u) {
        load_tokens(a, u * 8, x);
        rotate(x, a.head_dim, size);
        subtract_means(a, u * 8, means, x);
        constexpr ScaleForm kForm = formats::is_narrow(kBits) ? ScaleForm::byte : ScaleForm::half;
        const Affine8 affine = choose_affine<kBits, true, kForm>(x, nullptr, a.head_dim);
        store_scales<kForm>(a.block, u * 8, affine.scale16);
        for (int c = a.head_dim; c < l.dim; ++c) {
            _mm256_store_ps(x + c * 8, _mm256_setzero_ps());
        }
        make_codes(x, l.dim, affine, max_code, codes);
        add_residuals(x, a.head_dim, affine, max_code, residuals);
        for (int c = a.head_dim; c < l.dim; ++c) {  // the padding's codes are zero
            std::memset(codes + c * 4, 0, 4);
            std::memset(codes + (l.dim + c) * 4, 0, 4);
        }
        store_value_tokens<kBits>(a.block, l, u, codes);
    }
    formats::value_offsets(rotated, residuals, a.head_dim, n_rows, means, offsets);
    std::memcpy(a.block + l.offsets, offsets, std::size_t(a.head_dim) * sizeof offsets[0]);
    return true;
}

}  // namespace

#define MIXED_KV_DEFINE_FORMAT(name, bits) \
    bool encode_value_##name##_avx2(const EncodeArgs& args) noexcept { return encode_value<bits>(args); }
MIXED_KV_FOR_EACH_COLD_FORMAT(MIXED_KV_DEFINE_FORMAT)

}  // namespace mixed_kv::kernels::avx2
