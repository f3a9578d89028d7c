#pragma once

#include <cstddef>
#include <cstdint>

#include "avx512_emulation.h"

// AMX tiles in plain C++, written from the operation sections of Intel's instruction reference (LDTILECFG,
// STTILECFG, TILERELEASE, TILEZERO, TILELOADD, TILESTORED, TDPBSSD, TDPBF16PS): tiles and configuration of
// each thread, palette 1, configured rows and bytes obeyed. Where hardware would fault, a line on stderr and
// abort().
namespace mixed_kv::emulation {

void tile_load_config(const void* config);
void tile_store_config(void* config);
void tile_release();
void tile_zero(int tile);
void tile_load(int tile, const void* from, std::ptrdiff_t stride_bytes);
void tile_store(int tile, void* to, std::ptrdiff_t stride_bytes);
void tile_dpbssd(int sum, int a, int b);
void tile_dpbf16ps(int sum, int a, int b);

namespace {

// VCVTNE2PS2BF16: b's 16 numbers, then a's, to bfloat16, rounded to nearest even. Subnormal numbers become 0.
inline __m512i cvtne2ps_pbh(__m512 a, __m512 b) noexcept {
    std::uint32_t x[32];
    std::uint16_t out[32];
    std::memcpy(x, &b, sizeof b);
    std::memcpy(x + 16, &a, sizeof a);
    for (int i = 0; i < 32; ++i) {
        const std::uint32_t magnitude = x[i] & 0x7fffffffu;
        if (magnitude > 0x7f800000u) {
            out[i] = static_cast<std::uint16_t>(x[i] >> 16 | 0x40u);  // NaN, made quiet
        } else if (magnitude < 0x00800000u) {
            out[i] = static_cast<std::uint16_t>(x[i] >> 16 & 0x8000u);
        } else {
            out[i] = static_cast<std::uint16_t>((x[i] + 0x7fffu + (x[i] >> 16 & 1u)) >> 16);
        }
    }
    __m512i r;
    std::memcpy(&r, out, sizeof r);
    return r;
}

}  // namespace
}  // namespace mixed_kv::emulation

#undef _mm512_cvtne2ps_pbh
#define _mm512_cvtne2ps_pbh(a, b) ::mixed_kv::emulation::cvtne2ps_pbh(a, b)
