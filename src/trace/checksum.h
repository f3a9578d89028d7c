#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

namespace mixed_kv::trace {

// The checksum of trace files: the first 64 bits of MurmurHash3_x64_128 (Austin Appleby, public domain) with
// seed 0 over everything that was added. Finds accidents, not adversaries.
class Checksum {
  public:
    Checksum& add(std::span<const std::byte> bytes) noexcept {
        length_ += bytes.size();
        if (held_ > 0) {
            const size_t n = bytes.size() < sizeof(buffer_) - held_ ? bytes.size() : sizeof(buffer_) - held_;
            std::memcpy(buffer_ + held_, bytes.data(), n);
            held_ += n;
            bytes = bytes.subspan(n);
            if (held_ < sizeof(buffer_)) {
                return *this;
            }
            mix(buffer_);
            held_ = 0;
        }
        for (; bytes.size() >= sizeof(buffer_); bytes = bytes.subspan(sizeof(buffer_))) {
            mix(bytes.data());
        }
        if (!bytes.empty()) {
            std::memcpy(buffer_, bytes.data(), bytes.size());
            held_ = bytes.size();
        }
        return *this;
    }

    Checksum& add(std::initializer_list<int64_t> numbers) noexcept {
        return add(std::as_bytes(std::span(numbers.begin(), numbers.size())));
    }

    uint64_t value() const noexcept {
        uint64_t h1 = h1_;
        uint64_t h2 = h2_;
        if (held_ > 0) {
            std::byte tail[sizeof(buffer_)] = {};
            std::memcpy(tail, buffer_, held_);
            uint64_t k[2];
            std::memcpy(k, tail, sizeof(k));
            h2 ^= rotate(k[1] * kC2, 33) * kC1;
            h1 ^= rotate(k[0] * kC1, 31) * kC2;
        }
        h1 ^= length_;
        h2 ^= length_;
        h1 += h2;
        h2 += h1;
        return finish(h1) + finish(h2);
    }

  private:
    static constexpr uint64_t kC1 = 0x87c37b91114253d5ull;
    static constexpr uint64_t kC2 = 0x4cf5ad432745937full;

    static uint64_t rotate(uint64_t x, int n) noexcept { return (x << n) | (x >> (64 - n)); }
    static uint64_t finish(uint64_t k) noexcept {
        k = (k ^ (k >> 33)) * 0xff51afd7ed558ccdull;
        k = (k ^ (k >> 33)) * 0xc4ceb9fe1a85ec53ull;
        return k ^ (k >> 33);
    }
    void mix(const std::byte* block) noexcept {
        uint64_t k[2];
        std::memcpy(k, block, sizeof(k));
        h1_ ^= rotate(k[0] * kC1, 31) * kC2;
        h1_ = (rotate(h1_, 27) + h2_) * 5 + 0x52dce729;
        h2_ ^= rotate(k[1] * kC2, 33) * kC1;
        h2_ = (rotate(h2_, 31) + h1_) * 5 + 0x38495ab5;
    }

    uint64_t h1_ = 0;
    uint64_t h2_ = 0;
    uint64_t length_ = 0;
    std::byte buffer_[16] = {};
    size_t held_ = 0;  // bytes in buffer_
};

}  // namespace mixed_kv::trace
