#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

// Small helpers over __m256. Internal linkage: no compiled copy is shared with other files.
namespace mixed_kv::kernels::avx2 {
namespace {

inline __m256i load_i(const void* p) noexcept { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }

inline __m256 load_halves(const void* p) noexcept {
    return _mm256_cvtph_ps(_mm_loadu_si128(static_cast<const __m128i*>(p)));
}

// The first n < 8 of 8 halves, the rest 0, without touching what follows them.
inline __m256 load_halves(const void* p, int n) noexcept {
    alignas(16) std::uint16_t buffer[8] = {};
    std::memcpy(buffer, p, std::size_t(n) * sizeof buffer[0]);
    return load_halves(buffer);
}

// Eight scales of a byte, see formats::ScaleForm.
inline __m256 load_byte_scales(const void* p) noexcept {
    return _mm256_cvtph_ps(
        _mm_slli_epi16(_mm_cvtepu8_epi16(_mm_loadl_epi64(static_cast<const __m128i*>(p))), 7));
}

inline __m128i to_halves(__m256 x) noexcept {
    return _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

// Lanes 0..n-1 set, for masked loads and stores; 0 <= n <= 8.
inline __m256i lane_mask(int n) noexcept {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

inline float horizontal_sum(__m256 x) noexcept {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

inline float horizontal_max(__m256 x) noexcept {
    __m128 s = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    s = _mm_max_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}

inline __m256 abs_ps(__m256 x) noexcept { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x); }

// Columns of the 8x8 matrix with these rows.
inline void transpose(__m256 (&r)[8]) noexcept {
    const __m256 a0 = _mm256_unpacklo_ps(r[0], r[1]), a1 = _mm256_unpackhi_ps(r[0], r[1]);
    const __m256 a2 = _mm256_unpacklo_ps(r[2], r[3]), a3 = _mm256_unpackhi_ps(r[2], r[3]);
    const __m256 a4 = _mm256_unpacklo_ps(r[4], r[5]), a5 = _mm256_unpackhi_ps(r[4], r[5]);
    const __m256 a6 = _mm256_unpacklo_ps(r[6], r[7]), a7 = _mm256_unpackhi_ps(r[6], r[7]);
    const __m256 b0 = _mm256_shuffle_ps(a0, a2, 0x44), b1 = _mm256_shuffle_ps(a0, a2, 0xee);
    const __m256 b2 = _mm256_shuffle_ps(a1, a3, 0x44), b3 = _mm256_shuffle_ps(a1, a3, 0xee);
    const __m256 b4 = _mm256_shuffle_ps(a4, a6, 0x44), b5 = _mm256_shuffle_ps(a4, a6, 0xee);
    const __m256 b6 = _mm256_shuffle_ps(a5, a7, 0x44), b7 = _mm256_shuffle_ps(a5, a7, 0xee);
    r[0] = _mm256_permute2f128_ps(b0, b4, 0x20), r[4] = _mm256_permute2f128_ps(b0, b4, 0x31);
    r[1] = _mm256_permute2f128_ps(b1, b5, 0x20), r[5] = _mm256_permute2f128_ps(b1, b5, 0x31);
    r[2] = _mm256_permute2f128_ps(b2, b6, 0x20), r[6] = _mm256_permute2f128_ps(b2, b6, 0x31);
    r[3] = _mm256_permute2f128_ps(b3, b7, 0x20), r[7] = _mm256_permute2f128_ps(b3, b7, 0x31);
}

template <int kN>
struct Int {
    static constexpr int value = kN;
};

// Calls f(Int<0>), ..., f(Int<kN - 1>). Unlike a loop it makes every index a constant from the start, which
// keeps arrays of sums in registers through to the end of a tile.
template <int kN, int kI = 0, typename F>
inline __attribute__((always_inline)) void unroll(F&& f) noexcept {
    if constexpr (kI < kN) {
        f(Int<kI>{});
        unroll<kN, kI + 1>(f);
    }
}

// An instruction of its own: a function or lambda that only calls __builtin_prefetch has no effect as GCC 12
// sees it, and its calls are dropped.
inline void prefetch(const std::byte* p) noexcept { asm volatile("prefetcht0 %0" : : "m"(*p)); }

// Fetches the next page while this one is computed, a few lines per step: a strip of a block is no stream
// that the hardware would follow, and pages are not neighbours in memory.
struct Ahead {
    const std::byte* at;
    const std::byte* end;
    std::size_t bytes_per_step;

    // n_steps: how often step() is called at least while one page is computed.
    Ahead(const std::byte* next, std::size_t bytes, int n_steps) noexcept
        : at(next),
          end(next != nullptr ? next + bytes : next),
          bytes_per_step((bytes / std::size_t(n_steps) + 64) / 64 * 64) {}
    // Bytes [from, to) of the next page, for step_lines() only.
    Ahead(const std::byte* next, std::size_t from, std::size_t to) noexcept
        : at(next != nullptr ? next + from : next),
          end(next != nullptr ? next + to : next),
          bytes_per_step(0) {}
    void step() noexcept {
        const std::byte* stop =
            at + (static_cast<std::size_t>(end - at) < bytes_per_step ? static_cast<std::size_t>(end - at)
                                                                      : bytes_per_step);
        for (; at < stop; at += 64) {
            prefetch(at);
        }
    }
    // kLines lines, up to kLines - 1 of them beyond the end.
    template <int kLines>
    void step_lines() noexcept {
        if (at < end) {
            unroll<kLines>([this](auto i) { prefetch(at + i.value * 64); });
            at += kLines * 64;
        }
    }
};

// Calls f(r, Int<n>{}) with the first row and the number of rows of each tile, 4 at a time.
template <typename F>
inline void for_row_tiles(int n_rows, F&& f) {
    int r = 0;
    for (; r + 4 <= n_rows; r += 4) {
        f(r, Int<4>{});
    }
    switch (n_rows - r) {
        case 3:
            f(r, Int<3>{});
            break;
        case 2:
            f(r, Int<2>{});
            break;
        case 1:
            f(r, Int<1>{});
            break;
        default:
            break;
    }
}

}  // namespace
}  // namespace mixed_kv::kernels::avx2
