#pragma once

#include <cstddef>
#include <cstdint>

#include "mixed_kv/fp16.h"

namespace mixed_kv::cache {

// Whether a row holds a value of 1024 or more, an infinity or a NaN. Every codec takes rows without such
// values: scales and zero points are binary16, and rotating a row of at most 1024 channels scales its values
// by at most 32.
inline bool has_large_value(const fp16_t* row, std::ptrdiff_t n) noexcept {
    constexpr unsigned kLarge = 0x6400;  // 1024 as binary16; the sum carries into bit 15 from there on
    unsigned found = 0;
    for (std::ptrdiff_t i = 0; i < n; ++i) found |= (row[i] & 0x7fffu) + (0x8000u - kLarge);
    return (found & 0x8000u) != 0;
}

}  // namespace mixed_kv::cache
