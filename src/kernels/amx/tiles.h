#pragma once

#include <cstddef>
#include <cstdint>

#if defined(MIXED_KV_AVX512_EMULATED)
#include "amx_emulation.h"
#endif

// The tile instructions. Not the compiler's intrinsics: GCC 12 declares 8 of the 64 bytes of a configuration
// as read, and nothing at all of what a tile load reads, so that it may drop or move the stores before them.
namespace mixed_kv::kernels::amx {
namespace {

constexpr int kTileRows = 16;
constexpr int kTileBytes = 64;  // of a row

// What LDTILECFG and STTILECFG transfer.
struct alignas(64) TileConfig {
    std::uint8_t palette;  // 0: no tiles
    std::uint8_t start_row;
    std::uint8_t reserved0[14];
    std::uint16_t row_bytes[8];
    std::uint8_t reserved1[16];
    std::uint8_t rows[8];
    std::uint8_t reserved2[8];
};
static_assert(sizeof(TileConfig) == 64);

// Every product here is one of whole tiles; what a block or a page lacks is padded with zeros, or with rows
// whose results nobody reads.
constexpr TileConfig kWholeTiles = {
    1, 0, {}, {64, 64, 64, 64, 64, 64, 64, 64}, {}, {16, 16, 16, 16, 16, 16, 16, 16}, {}};

#if defined(MIXED_KV_AVX512_EMULATED)

inline void load_config(const TileConfig& c) noexcept { emulation::tile_load_config(&c); }
inline void store_config(TileConfig& c) noexcept { emulation::tile_store_config(&c); }
inline void release() noexcept { emulation::tile_release(); }
template <int kTile>
inline void zero() noexcept {
    emulation::tile_zero(kTile);
}
template <int kTile>
inline void load(const void* from, std::ptrdiff_t stride_bytes) noexcept {
    emulation::tile_load(kTile, from, stride_bytes);
}
template <int kTile>
inline void store(void* to, std::ptrdiff_t stride_bytes) noexcept {
    emulation::tile_store(kTile, to, stride_bytes);
}
template <int kSum, int kA, int kB>
inline void multiply_int8() noexcept {
    emulation::tile_dpbssd(kSum, kA, kB);
}
template <int kSum, int kA, int kB>
inline void multiply_bf16() noexcept {
    emulation::tile_dpbf16ps(kSum, kA, kB);
}

#else

inline void load_config(const TileConfig& c) noexcept { __asm__ volatile("ldtilecfg %0" : : "m"(c)); }
inline void store_config(TileConfig& c) noexcept { __asm__ volatile("sttilecfg %0" : "=m"(c)); }
inline void release() noexcept { __asm__ volatile("tilerelease"); }
template <int kTile>
inline void zero() noexcept {
    __asm__ volatile("tilezero %%tmm%c0" : : "i"(kTile));
}
template <int kTile>
inline void load(const void* from, std::ptrdiff_t stride_bytes) noexcept {
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(stride_bytes), "i"(kTile) : "memory");
}
template <int kTile>
inline void store(void* to, std::ptrdiff_t stride_bytes) noexcept {
    __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(stride_bytes), "i"(kTile) : "memory");
}
// sum[m][n] += sum_k a[m][k] * b[k / 4][n][k % 4], signed bytes into 32-bit integers.
template <int kSum, int kA, int kB>
inline void multiply_int8() noexcept {
    __asm__ volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kSum), "i"(kA), "i"(kB));
}
// sum[m][n] += sum_k a[m][k] * b[k / 2][n][k % 2], bfloat16 into float.
template <int kSum, int kA, int kB>
inline void multiply_bf16() noexcept {
    __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kSum), "i"(kA), "i"(kB));
}

#endif

// Lends a kernel the tiles of the thread it runs on, which is the host's: ggml-cpu configures tiles once per
// thread and relies on finding them so. What tiles hold is lost, as between any two ops.
class TilesOfThread {
  public:
    TilesOfThread() noexcept {
        store_config(saved_);
        load_config(kWholeTiles);
    }
    ~TilesOfThread() {
        if (saved_.palette == 0) {
            release();
        } else {
            load_config(saved_);
        }
    }
    TilesOfThread(const TilesOfThread&) = delete;
    TilesOfThread& operator=(const TilesOfThread&) = delete;

  private:
    TileConfig saved_;
};

}  // namespace
}  // namespace mixed_kv::kernels::amx
