#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels/avx2/simd.h"
#include "kernels/avx512/intrinsics.h"

// Small helpers over __m512. Internal linkage: no compiled copy is shared with other files.
namespace mixed_kv::kernels::avx512 {
namespace {

using avx2::for_row_tiles;
using avx2::prefetch;
using avx2::unroll;

inline __m512i load_i(const void* p) noexcept { return _mm512_loadu_si512(p); }

inline __m512 load_halves(const void* p) noexcept {
    return _mm512_cvtph_ps(_mm256_loadu_si256(static_cast<const __m256i*>(p)));
}

// Sixteen scales of a byte, see formats::ScaleForm.
inline __m512 load_byte_scales(const void* p) noexcept {
    const __m128i bytes = _mm_loadu_si128(static_cast<const __m128i*>(p));
    return _mm512_cvtph_ps(_mm256_slli_epi16(_mm256_cvtepu8_epi16(bytes), 7));
}

// Lanes 0..n-1; 0 <= n <= 16.
inline __mmask16 lane_mask(int n) noexcept { return static_cast<__mmask16>((1u << n) - 1u); }

// The halves of a mask's lanes, the rest 0, without touching the others' bytes.
inline __m512 load_halves(const void* p, __mmask16 lanes) noexcept {
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(lanes, p));
}

// Four bytes (or one float) to every lane.
inline __m512i broadcast4(const std::byte* p) noexcept {
    std::int32_t bits;
    std::memcpy(&bits, p, sizeof bits);
    return _mm512_set1_epi32(bits);
}

// The larger of |x| and largest, which is not negative; skips NaN.
inline __m512 max_magnitude(__m512 x, __m512 largest) noexcept {
    constexpr int kLargerMagnitudeWithoutSign = 0b1011;
    return _mm512_range_ps(x, largest, kLargerMagnitudeWithoutSign);
}

inline float horizontal_max(__m512 x) noexcept {
    return avx2::horizontal_max(_mm256_max_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1)));
}

// Fetches the next page while this one is computed, a few lines per step: a strip of a block is no stream
// that the hardware would follow, and pages are not neighbours in memory. No branch: from the last lines on,
// the same ones are asked for again, up to kLines - 1 of them beyond the block.
struct Ahead {
    const std::byte* at;
    const std::byte* end;

    // Bytes [from, to) of the next page; current: any readable address, asked for instead without one.
    Ahead(const std::byte* next, std::size_t from, std::size_t to, const std::byte* current) noexcept
        : at(next != nullptr ? next + from : current), end(next != nullptr ? next + to : current) {}
    template <int kLines>
    void step() noexcept {
        unroll<kLines>([this](auto i) { prefetch(at + i.value * 64); });
        at += at + kLines * 64 < end ? kLines * 64 : 0;
    }
};

}  // namespace
}  // namespace mixed_kv::kernels::avx512
