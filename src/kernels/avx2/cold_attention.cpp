// qk and pv over cold pages with the integer scheme of src/kernels/scalar/cold.cpp. Codes are widened to 16
// bits (even and odd bytes of each 32-bit lane) and multiplied by the 16-bit q with vpmaddwd: two products
// per lane and instruction, summed exactly in 32 bits. No width saturates, unlike vpmaddubsw with 8-bit
// codes.
//
// Register tile: up to 4 query rows x 2 (1 or 2 rows: 4) vectors of 8 sums, so that every code byte is
// unpacked once per 4 rows; the block stays in L1 while its tiles pass over it.

#include "formats/format_list.h"
#include "kernels/avx2/avx2.h"
#include "kernels/avx2/codes.h"

namespace mixed_kv::kernels::avx2 {
namespace {

using formats::BlockLayout;

// The integers of one pass over the page: q * scale (or p * scale), or what the first pass left out of it.
struct Pass {
    std::int16_t* q16;  // [n_rows][length], groups of four as 0 2 1 3: what even and odd bytes meet
    float step[kMaxDecodeRows], constant[kMaxDecodeRows];
    float weight[kMaxDecodeRows];        // of the channels' means, values only
    std::int32_t start[kMaxDecodeRows];  // -centre * sum of q16
};

// Scratch: [scale float][what a code of the centre adds float][one row scaled float][16-bit rows of two
// passes].
struct Scratch {
    float *scale, *offset, *scaled;
    Pass first, rest;
    bool has_rest[kMaxDecodeRows];  // rows whose residual is worth a second pass; the others' is zero
};

constexpr int padded(int n) { return formats::round_up(n, 16); }

// Rounds the length values of x to 16 bits; see to_q16() of the scalar kernels, which this equals.
inline void to_q16(const float* x, int length, float largest, int limit, std::int16_t* out, float& step,
                   std::int32_t& sum) noexcept {
    const float bound = static_cast<float>(limit);
    const bool zero = !(largest > 1e-30f);
    const __m256 inv = _mm256_set1_ps(zero ? 0.0f : bound / largest);
    const __m256 high = _mm256_set1_ps(bound);
    const __m256 low = _mm256_set1_ps(-bound);
    const __m256i order = _mm256_setr_epi8(0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15,  //
                                           0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15);
    __m256i sums = _mm256_setzero_si256();
    for (int c = 0; c < length; c += 16) {
        __m256 a = _mm256_mul_ps(_mm256_loadu_ps(x + c), inv);
        __m256 b = _mm256_mul_ps(_mm256_loadu_ps(x + c + 8), inv);
        a = _mm256_min_ps(_mm256_max_ps(a, low), high);
        b = _mm256_min_ps(_mm256_max_ps(b, low), high);
        const __m256i packed =
            _mm256_permute4x64_epi64(_mm256_packs_epi32(_mm256_cvtps_epi32(a), _mm256_cvtps_epi32(b)), 0xd8);
        sums = _mm256_add_epi32(sums, _mm256_madd_epi16(packed, _mm256_set1_epi16(1)));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + c), _mm256_shuffle_epi8(packed, order));
    }
    step = zero ? 0.0f : largest / bound;
    sum = horizontal_sum(sums);
}

// x -= q16 * step in place, product and difference rounded one after the other as in the scalar kernels;
// returns the largest magnitude left.
inline float take_residual(float* x, int length, const std::int16_t* q16, float step) noexcept {
    const __m256i order = _mm256_setr_epi8(0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15,  //
                                           0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15);
    const __m256 unit = _mm256_set1_ps(step);
    __m256 largest = _mm256_setzero_ps();
    for (int c = 0; c < length; c += 16) {
        // The order of groups 0 2 1 3 is its own inverse.
        const __m256i q =
            _mm256_shuffle_epi8(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(q16 + c)), order);
        const __m256 a = _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(_mm256_castsi256_si128(q)));
        const __m256 b = _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(_mm256_extracti128_si256(q, 1)));
        const __m256 ra = _mm256_sub_ps(_mm256_loadu_ps(x + c), _mm256_mul_ps(a, unit));
        const __m256 rb = _mm256_sub_ps(_mm256_loadu_ps(x + c + 8), _mm256_mul_ps(b, unit));
        _mm256_storeu_ps(x + c, ra);
        _mm256_storeu_ps(x + c + 8, rb);
        largest = _mm256_max_ps(_mm256_max_ps(abs_ps(ra), abs_ps(rb)), largest);
    }
    return horizontal_max(largest);
}

// Folds the block's scales and zero points into n_rows rows of x; length is a multiple of 16. needs_rest(r,
// step) says whether a row's residual is wanted. Returns whether any is.
template <int kBits, bool kIsKey, typename NeedsRest>
inline bool fold(const std::byte* block, const BlockLayout& l, const float* x, std::ptrdiff_t stride,
                 int n_rows, int length, int limit, Scratch& s, NeedsRest&& needs_rest) noexcept {
    constexpr int centre = formats::code_centre(kBits);
    bool any = false;
    for (int c = 0; c < length; c += 8) {
        const __m256 scale = load_halves(block + std::size_t(c) * 2);
        _mm256_storeu_ps(s.scale + c, scale);
        if constexpr (kIsKey) {
            const __m256 zero = load_halves(block + l.offsets + std::size_t(c) * 2);
            _mm256_storeu_ps(s.offset + c, _mm256_fmadd_ps(scale, _mm256_set1_ps(centre), zero));
        } else {
            _mm256_storeu_ps(s.offset + c, _mm256_mul_ps(scale, _mm256_set1_ps(formats::kCentreAboveMiddle)));
        }
    }
    for (int r = 0; r < n_rows; ++r) {
        const float* row = x + r * stride;
        __m256 largest = _mm256_setzero_ps(), constant = _mm256_setzero_ps(), constant2 = _mm256_setzero_ps();
        __m256 weight = _mm256_setzero_ps();
        for (int c = 0; c < length; c += 16) {
            const __m256 a = _mm256_loadu_ps(row + c), b = _mm256_loadu_ps(row + c + 8);
            const __m256 sa = _mm256_mul_ps(a, _mm256_loadu_ps(s.scale + c));
            const __m256 sb = _mm256_mul_ps(b, _mm256_loadu_ps(s.scale + c + 8));
            _mm256_storeu_ps(s.scaled + c, sa);
            _mm256_storeu_ps(s.scaled + c + 8, sb);
            largest = _mm256_max_ps(abs_ps(sa), largest);
            largest = _mm256_max_ps(abs_ps(sb), largest);
            constant = _mm256_fmadd_ps(a, _mm256_loadu_ps(s.offset + c), constant);
            constant2 = _mm256_fmadd_ps(b, _mm256_loadu_ps(s.offset + c + 8), constant2);
            if constexpr (!kIsKey) {
                weight = _mm256_add_ps(weight, _mm256_add_ps(a, b));
            }
        }
        const auto round = [&](Pass& pass, float max) {
            std::int32_t sum;
            to_q16(s.scaled, length, max, limit, pass.q16 + std::ptrdiff_t(r) * length, pass.step[r], sum);
            pass.start[r] = static_cast<std::int32_t>(-static_cast<std::uint32_t>(centre) *
                                                      static_cast<std::uint32_t>(sum));
        };
        s.first.constant[r] = horizontal_sum(_mm256_add_ps(constant, constant2));
        s.first.weight[r] = horizontal_sum(weight);
        s.rest.weight[r] = 0.0f;
        round(s.first, horizontal_max(largest));
        s.has_rest[r] = needs_rest(r, s.first.step[r]);
        any = any || s.has_rest[r];
        s.rest.constant[r] = 0.0f;
        if (s.has_rest[r]) {
            round(s.rest,
                  take_residual(s.scaled, length, s.first.q16 + std::ptrdiff_t(r) * length, s.first.step[r]));
        } else {
            std::memset(s.rest.q16 + std::ptrdiff_t(r) * length, 0,
                        std::size_t(length) * sizeof(std::int16_t));
            s.rest.step[r] = 0.0f;
            s.rest.start[r] = 0;
        }
    }
    return any;
}

inline Scratch make_scratch(std::byte* memory, int length) noexcept {
    auto* floats = reinterpret_cast<float*>(memory);
    Scratch s;
    s.scale = floats;
    s.offset = floats + length;
    s.scaled = floats + 2 * length;
    s.first.q16 = reinterpret_cast<std::int16_t*>(floats + 3 * length);
    s.rest.q16 = s.first.q16 + std::ptrdiff_t(kMaxDecodeRows) * length;
    return s;
}

inline __m256i broadcast_pair(const std::int16_t* two) noexcept {
    std::int32_t bits;
    std::memcpy(&bits, two, sizeof bits);
    return _mm256_set1_epi32(bits);
}

inline __m256i even_codes(__m256i bytes) noexcept { return _mm256_and_si256(bytes, _mm256_set1_epi16(0xff)); }
inline __m256i odd_codes(__m256i bytes) noexcept { return _mm256_srli_epi16(bytes, 8); }

// Scores of kRows rows for half kHalf of the page's tokens, vectors j0 .. j0 + kVectors - 1 of it; kAdd: on
// top of what is there.
template <int kBits, int kHalf, int kRows, int kVectors, bool kAdd>
inline void qk_tile(const QkArgs& a, const BlockLayout& l, const Pass& s, int length, int r0, int j0,
                    Ahead& ahead) noexcept {
    const int n_groups = l.dim / 4;
    const std::int16_t* q16 = s.q16 + std::ptrdiff_t(r0) * length;
    __m256i sum[kRows][kVectors][2];
    for (int r = 0; r < kRows; ++r) {
        for (int j = 0; j < kVectors; ++j) {
            sum[r][j][0] = sum[r][j][1] = _mm256_set1_epi32(s.start[r0 + r]);
        }
    }
    for (int g = 0; g < n_groups; ++g) {
        ahead.step();
        for (int j = 0; j < kVectors; ++j) {
            const CodePair codes = load_codes<kBits, kHalf>(key_planes(a.keys.data, l, g, kHalf, j0 + j));
            const __m256i even_a = even_codes(codes.a), even_b = even_codes(codes.b);
            for (int r = 0; r < kRows; ++r) {
                const __m256i q = broadcast_pair(q16 + r * length + g * 4);
                sum[r][j][0] = _mm256_add_epi32(sum[r][j][0], _mm256_madd_epi16(even_a, q));
                sum[r][j][1] = _mm256_add_epi32(sum[r][j][1], _mm256_madd_epi16(even_b, q));
            }
            const __m256i odd_a = odd_codes(codes.a), odd_b = odd_codes(codes.b);
            for (int r = 0; r < kRows; ++r) {
                const __m256i q = broadcast_pair(q16 + r * length + g * 4 + 2);
                sum[r][j][0] = _mm256_add_epi32(sum[r][j][0], _mm256_madd_epi16(odd_a, q));
                sum[r][j][1] = _mm256_add_epi32(sum[r][j][1], _mm256_madd_epi16(odd_b, q));
            }
        }
    }
    for (int r = 0; r < kRows; ++r) {
        const __m256 step = _mm256_set1_ps(s.step[r0 + r]), constant = _mm256_set1_ps(s.constant[r0 + r]);
        for (int j = 0; j < kVectors; ++j) {
            float* out = a.scores + (r0 + r) * kPage + kHalf * 32 + (j0 + j) * 8;
            __m256 low = _mm256_cvtepi32_ps(sum[r][j][0]), high = _mm256_cvtepi32_ps(sum[r][j][1]);
            if constexpr (kAdd) {
                low = _mm256_add_ps(_mm256_loadu_ps(out), _mm256_mul_ps(low, step));
                high = _mm256_add_ps(_mm256_loadu_ps(out + 16), _mm256_mul_ps(high, step));
            } else {
                low = _mm256_fmadd_ps(low, step, constant);
                high = _mm256_fmadd_ps(high, step, constant);
            }
            _mm256_storeu_ps(out, low);
            _mm256_storeu_ps(out + 16, high);
        }
    }
}

// Adds tokens 8u.. 8u + 7 (u % 2 = kOdd) to the sums of kRows rows and kVectors vectors of 8 channels from 8
// * v0.
template <int kBits, int kOdd, int kRows, int kVectors>
inline void pv_step(const std::byte* block, const BlockLayout& l, const std::int16_t* p16, int u, int v0,
                    __m256i (&sum)[kRows][kVectors]) noexcept {
    CodePair codes[kVectors];
    for (int v = 0; v < kVectors; ++v) {
        codes[v] = load_codes<kBits, kOdd>(value_planes(block, l, u, v0 + v));
    }
    const auto multiply = [&](auto&& part, int offset) {
        __m256i x[kVectors];
        for (int v = 0; v < kVectors; ++v) {
            x[v] = part(codes[v]);
        }
        for (int r = 0; r < kRows; ++r) {
            const __m256i p = broadcast_pair(p16 + r * kPage + u * 8 + offset);
            for (int v = 0; v < kVectors; ++v) {
                sum[r][v] = _mm256_add_epi32(sum[r][v], _mm256_madd_epi16(x[v], p));
            }
        }
    };
    multiply([](const CodePair& c) { return even_codes(c.a); }, 0);
    multiply([](const CodePair& c) { return odd_codes(c.a); }, 2);
    multiply([](const CodePair& c) { return even_codes(c.b); }, 4);
    multiply([](const CodePair& c) { return odd_codes(c.b); }, 6);
}

template <int kBits, int kRows, int kVectors>
inline void pv_tile(const PvArgs& a, const BlockLayout& l, const Pass& s, int r0, int v0,
                    Ahead& ahead) noexcept {
    __m256i sum[kRows][kVectors];
    for (int r = 0; r < kRows; ++r) {
        for (int v = 0; v < kVectors; ++v) {
            sum[r][v] = _mm256_set1_epi32(s.start[r0 + r]);
        }
    }
    const std::int16_t* p16 = s.q16 + std::ptrdiff_t(r0) * kPage;
    for (int u = 0; u < kPage / 8; u += 2) {
        ahead.step();
        pv_step<kBits, 0>(a.values.data, l, p16, u, v0, sum);
        pv_step<kBits, 1>(a.values.data, l, p16, u + 1, v0, sum);
    }
    for (int r = 0; r < kRows; ++r) {
        const __m256 step = _mm256_set1_ps(s.step[r0 + r]), constant = _mm256_set1_ps(s.constant[r0 + r]);
        const __m256 weight = _mm256_set1_ps(s.weight[r0 + r]);
        for (int v = 0; v < kVectors; ++v) {
            float* o = a.o + (r0 + r) * a.o_stride + (v0 + v) * 8;
            const __m256 mean = load_halves(a.values.data + l.offsets + std::size_t(v0 + v) * 16);
            const __m256 rest = _mm256_fmadd_ps(weight, mean, constant);
            const __m256 add = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum[r][v]), step, rest);
            _mm256_storeu_ps(o, _mm256_add_ps(_mm256_loadu_ps(o), add));
        }
    }
}

// One pass of qk over rows r .. r + kRows - 1.
template <int kBits, int kRows, bool kAdd>
inline void qk_rows(const QkArgs& a, const BlockLayout& l, const Pass& pass, int length, int r,
                    Ahead& ahead) noexcept {
    constexpr int kVectors = kRows <= 2 ? 2 : 1;
    for (int j = 0; j < 2; j += kVectors) {
        qk_tile<kBits, 0, kRows, kVectors, kAdd>(a, l, pass, length, r, j, ahead);
        qk_tile<kBits, 1, kRows, kVectors, kAdd>(a, l, pass, length, r, j, ahead);
    }
}

template <int kBits, int kRows>
inline void pv_rows(const PvArgs& a, const BlockLayout& l, const Pass& pass, int r, Ahead& ahead) noexcept {
    const int n_vectors = l.dim / 8;
    int v = 0;
    if constexpr (kRows <= 2) {
        for (; v + 4 <= n_vectors; v += 4) {
            pv_tile<kBits, kRows, 4>(a, l, pass, r, v, ahead);
        }
    }
    for (; v < n_vectors; v += 2) {
        pv_tile<kBits, kRows, 2>(a, l, pass, r, v, ahead);
    }
}

inline bool any_rest(const Scratch& s, int r, int n) noexcept {
    for (int i = r; i < r + n; ++i) {
        if (s.has_rest[i]) {
            return true;
        }
    }
    return false;
}

template <int kBits>
void qk_cold(const QkArgs& a) noexcept {
    const int length = padded(a.keys.head_dim);
    const BlockLayout l = formats::block_layout(true, kBits, a.keys.head_dim);
    const float noise = formats::score_noise(kBits, a.keys.head_dim);
    Scratch s = make_scratch(a.scratch, length);
    const bool rest = fold<kBits, true>(
        a.keys.data, l, a.q, a.q_stride, a.n_rows, length, formats::q16_limit(kBits, a.keys.head_dim), s,
        [&](int, float step) { return step * noise > formats::kScoreNoiseAllowed; });
    Ahead ahead(a.keys.next, l.bytes, (a.n_rows <= 2 ? 2 : 4) * (l.dim / 4));
    for_row_tiles(a.n_rows, [&](int r, auto rows) {
        constexpr int kRows = decltype(rows)::value;
        qk_rows<kBits, kRows, false>(a, l, s.first, length, r, ahead);
        if (rest && any_rest(s, r, kRows)) {
            qk_rows<kBits, kRows, true>(a, l, s.rest, length, r, ahead);
        }
    });
}

template <int kBits>
void pv_cold(const PvArgs& a) noexcept {
    const BlockLayout l = formats::block_layout(false, kBits, a.values.head_dim);
    Scratch s = make_scratch(a.scratch, kPage);
    const bool rest = fold<kBits, false>(
        a.values.data, l, a.p, kPage, a.n_rows, kPage, formats::q16_limit(kBits, kPage), s,
        [&](int r, float) {
            __m256 largest = _mm256_setzero_ps();
            for (int t = 0; t < kPage; t += 8) {
                largest = _mm256_max_ps(_mm256_loadu_ps(a.p + r * kPage + t), largest);
            }
            const float allowed = a.mass == nullptr ? 0.0f : formats::kMassShareAllowed * a.mass[r];
            return horizontal_max(largest) > allowed;
        });
    const int n_vectors = l.dim / 8;
    Ahead ahead(a.values.next, l.bytes, (a.n_rows <= 2 ? (n_vectors + 3) / 4 : n_vectors / 2) * (kPage / 16));
    for_row_tiles(a.n_rows, [&](int r, auto rows) {
        constexpr int kRows = decltype(rows)::value;
        pv_rows<kBits, kRows>(a, l, s.first, r, ahead);
        if (rest && any_rest(s, r, kRows)) {
            pv_rows<kBits, kRows>(a, l, s.rest, r, ahead);
        }
    });
}

}  // namespace

std::size_t scratch_bytes(int head_dim) noexcept {
    const auto length = static_cast<std::size_t>(padded(head_dim) > kPage ? padded(head_dim) : kPage);
    return (3 * length * sizeof(float) + 2 * kMaxDecodeRows * length * sizeof(std::int16_t) + 63) / 64 * 64;
}

#define MIXED_KV_DEFINE_FORMAT(name, bits)                                      \
    void qk_##name##_avx2(const QkArgs& args) noexcept { qk_cold<bits>(args); } \
    void pv_##name##_avx2(const PvArgs& args) noexcept { pv_cold<bits>(args); }
MIXED_KV_FOR_EACH_COLD_FORMAT(MIXED_KV_DEFINE_FORMAT)

}  // namespace mixed_kv::kernels::avx2
