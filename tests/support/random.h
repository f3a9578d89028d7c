#pragma once

#include <cstdint>

// Random numbers that are the same on every platform and cheap enough for tests that draw millions.
namespace mixed_kv::test {

class Random {
  public:
    explicit Random(std::uint64_t seed) : state_(seed * 0x9e3779b97f4a7c15u + 1) {}

    std::uint64_t next() noexcept {  // splitmix64
        std::uint64_t z = state_ += 0x9e3779b97f4a7c15u;
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
        return z ^ (z >> 31);
    }
    int below(int n) noexcept { return static_cast<int>(next() % static_cast<std::uint64_t>(n)); }
    float uniform() noexcept { return static_cast<float>(next() >> 40) * 0x1p-24f; }  // [0, 1)
    // Mean 0, standard deviation 1, within +-3.5: the sum of four uniforms of 16 bits.
    float normal() noexcept {
        const std::uint64_t r = next();
        const auto sum =
            static_cast<std::int64_t>((r & 0xffff) + (r >> 16 & 0xffff) + (r >> 32 & 0xffff) + (r >> 48));
        return static_cast<float>(sum - 2 * 0xffff) * (1.7320508f / 65536.0f);
    }

  private:
    std::uint64_t state_;
};

}  // namespace mixed_kv::test
