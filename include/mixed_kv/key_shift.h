#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace mixed_kv {

// K-shift: the positions of stored keys change after RoPE has turned the keys. Turning by an angle and then
// by another is turning by their sum, so a cold block need not change: what is still to be done to its keys
// is kept beside it, and whoever reads them does it (attention turns the query the other way instead).

// The channels of a head that RoPE turns, in pairs: pair i is (first + 2 i, first + 2 i + 1) when interleaved
// (ggml's NORMAL mode), else (first + i, first + n_pairs + i) (NEOX).
struct RotaryPairs {
    int first = 0;
    int n_pairs = 0;
    bool interleaved = false;
    bool operator==(const RotaryPairs&) const = default;
};

// Turns: per pair a cosine and a sine, [2][n_pairs]; a key's pair (a, b) becomes (c a - s b, s a + c b).
// c^2 + s^2 = 1: RoPE's attention factor is no part of them, for a key has it since it was written.
void turn_key(const RotaryPairs& pairs, const float* turn, float* key) noexcept;
// The transpose: turn_query(q) * key = q * turn_key(key).
void turn_query(const RotaryPairs& pairs, const float* turn, float* query) noexcept;

// Turns that some page of a tensor has still to apply.
struct PendingTurns {
    RotaryPairs pairs;
    std::vector<std::int64_t> distances;  // [n] positions, summed over K-shifts: no two are equal
    std::vector<float> values;            // [n][2][n_pairs]

    const float* turn(std::size_t i) const noexcept {
        return values.data() + i * 2 * static_cast<std::size_t>(pairs.n_pairs);
    }
};

// What one cold page has still to apply to the keys of its block: cells of one group share a turn, cells of
// no group are as the block says. Overlay rows are always up to date.
struct PageShift {
    // Sequences on a shared page that shift apart. Attention scores the block once for each.
    static constexpr int kMaxGroups = 4;
    std::uint64_t cells[kMaxGroups] = {};  // disjoint
    std::uint32_t turn[kMaxGroups] = {};   // index into PendingTurns
};

// One K-shift of a tensor, for KvTensor::plan_shift(). Everything must stay valid until commit_shift().
struct KeyShift {
    int n_head = 0;  // a row is [n_head][head_dim], pairs are counted in a head
    int head_dim = 0;
    RotaryPairs pairs;
    const std::uint32_t* kinds = nullptr;     // per global cell: 0 stays, k turns by turn k - 1
    const float* turns = nullptr;             // [n_turns][2][n_pairs]
    const std::int64_t* distances = nullptr;  // [n_turns] positions: equal ones have equal turns
    int n_turns = 0;
};

}  // namespace mixed_kv
