#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

namespace mixed_kv::trace {

// A content hash to recognise rows and pages that were stored before. 128 bits: with a billion distinct rows
// the chance that any two collide is about 1e-21. Not for adversaries, and never stored in a file.
struct Hash128 {
    uint64_t low = 0;
    uint64_t high = 0;
    bool operator==(const Hash128&) const = default;
};

inline Hash128 hash128(std::span<const std::byte> bytes) noexcept {
    // MurmurHash3_x64_128 (Austin Appleby, public domain) with its constants.
    constexpr uint64_t kC1 = 0x87c37b91114253d5ull;
    constexpr uint64_t kC2 = 0x4cf5ad432745937full;
    const auto rotate = [](uint64_t x, int n) { return (x << n) | (x >> (64 - n)); };
    const auto finish = [](uint64_t k) {
        k = (k ^ (k >> 33)) * 0xff51afd7ed558ccdull;
        k = (k ^ (k >> 33)) * 0xc4ceb9fe1a85ec53ull;
        return k ^ (k >> 33);
    };
    uint64_t h1 = 0;
    uint64_t h2 = 0;
    for (size_t done = 0; done < bytes.size(); done += 16) {
        uint64_t k[2] = {0, 0};
        const size_t n = bytes.size() - done < 16 ? bytes.size() - done : 16;
        std::memcpy(k, bytes.data() + done,
                    n);  // a short last piece is filled with zeros; the length is mixed in
        h1 ^= rotate(k[0] * kC1, 31) * kC2;
        h1 = (rotate(h1, 27) + h2) * 5 + 0x52dce729;
        h2 ^= rotate(k[1] * kC2, 33) * kC1;
        h2 = (rotate(h2, 31) + h1) * 5 + 0x38495ab5;
    }
    h1 ^= bytes.size();
    h2 ^= bytes.size();
    h1 += h2;
    h2 += h1;
    h1 = finish(h1);
    h2 = finish(h2);
    h1 += h2;
    h2 += h1;
    return {h1, h2};
}

}  // namespace mixed_kv::trace
