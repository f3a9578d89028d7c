#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace mixed_kv::tools {

enum class OpKind {
    decode,
    generate,
    decode_shared,
    fill,
    rm_tail,
    rm_middle,
    rm_sequence,
    rm_everything,
    copy,
    keep,
    shift,
    context_shift,
    divide,
    clear_data,
    clear_metadata,
    save_whole,
    restore_whole,
    save_sequence,
    restore_sequence,
    device_round_trip,
    damaged_restore,
    odd_bytes,
    fragment,
    requests,
    park,
    endless,
    abort_decode,
    recreate,
};

struct OpInfo {
    OpKind kind;
    const char* name;
    int weight;  // how often it is drawn
    const char* description;
};

std::span<const OpInfo> all_operations();
const OpInfo& operation_info(OpKind kind);

// One random operation. Its details follow from its own seed and from the state it finds, so that a sequence
// stays meaningful when others are taken out of it.
struct Op {
    OpKind kind;
    std::uint64_t seed;
};

// The operations of one run: the same seed and names give the same list. only: names to draw from; empty:
// all. Throws std::invalid_argument for an unknown name.
std::vector<Op> random_operations(std::uint64_t seed, std::size_t n, const std::vector<std::string>& only);

// splitmix64: the same numbers on every machine.
class Random {
  public:
    explicit Random(std::uint64_t seed) : state_(seed) {}
    std::uint64_t next() noexcept {
        std::uint64_t z = (state_ += 0x9e3779b97f4a7c15);
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
        z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
        return z ^ (z >> 31);
    }
    // low <= result <= high
    int between(int low, int high) noexcept {
        return low + static_cast<int>(next() % static_cast<std::uint64_t>(high - low + 1));
    }
    bool one_in(int n) noexcept { return next() % static_cast<std::uint64_t>(n) == 0; }

  private:
    std::uint64_t state_;
};

}  // namespace mixed_kv::tools
