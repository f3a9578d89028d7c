#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "mixed_kv/kv_tensor.h"

namespace mixed_kv {

// The plan of one write. Vectors keep a small capacity from write to write, so that steady generation
// allocates nothing and a long prompt leaves nothing behind in every tensor.
struct KvTensor::Work {
    // Storage taken from the arena while planning; given back when a later step of the plan fails.
    struct Block {
        std::byte* data;
        std::size_t bytes;
    };
    // A page that rows are written to.
    struct Touch {
        std::uint32_t page;
        std::uint64_t cells;
        std::byte* hot;   // new storage of an empty or promoted page
        fp16_t* overlay;  // new overlay array of a cold page that outgrows its own
    };
    // A hot page that freezes, or a cold one that is encoded anew. `before` keeps the storage that the encode
    // jobs read; it is released by finish_freezes().
    struct Freeze {
        std::uint32_t page;
        std::uint64_t keep;  // overlay of the result
        std::byte* block;
        fp16_t* overlay;
        Page before;
        bool encoded;  // already while planning
        std::uint8_t refused;
    };
    struct Encode {
        std::uint32_t freeze;
        int first_head, n_heads;
        std::size_t scratch;  // index into floats
        std::uint8_t refused;
    };
    // Where a source row goes.
    struct Target {
        std::byte* row = nullptr;  // null: a later row is written to the same cell
        std::ptrdiff_t head_stride_bytes = 0;
        std::uint32_t page = 0;
        std::uint8_t suspect = 0;
    };

    RowSource source{};
    std::vector<Block> reserved;
    std::vector<Touch> touches;
    std::vector<Freeze> freezes;
    std::vector<Encode> encodes;
    std::vector<Target> targets;
    std::vector<float> floats;
    std::size_t rows_per_job = 1;

    void shrink() noexcept {
        constexpr std::size_t kKeep = 16;
        const auto shrink_one = [](auto& v) {
            if (v.capacity() > kKeep) v = std::remove_reference_t<decltype(v)>();  // {} would keep the memory
        };
        shrink_one(reserved);
        shrink_one(touches);
        shrink_one(freezes);
        shrink_one(encodes);
        shrink_one(targets);
        shrink_one(floats);
    }
    std::size_t memory_bytes() const noexcept {
        const auto bytes = [](const auto& v) { return v.capacity() * sizeof(v[0]); };
        return sizeof(*this) + bytes(reserved) + bytes(touches) + bytes(freezes) + bytes(encodes) +
               bytes(targets) + bytes(floats);
    }
};

// What a planned K-shift will do. Blocks see old turns until the commit.
struct KvTensor::ShiftPlan {
    // How a turn came about: `kind` of this shift after turn `before`.
    struct Source {
        std::uint32_t before, kind;
    };
    static constexpr std::uint32_t kNoTurn = UINT32_MAX;
    struct Encoding {
        std::uint32_t page;
        std::byte* hot;  // its new storage when the codec may refuse what the page will hold
    };

    KeyShift shift;
    std::vector<std::uint8_t> kind_keeps_length;  // [n_turns]
    PendingTurns turns;
    std::vector<Source> sources;         // of turns
    std::vector<PageShift> shifts;       // [pages]; empty: no page has groups
    std::vector<std::uint8_t> n_groups;  // [pages]
    std::vector<Encoding> encodings;
    // Room for commit_shift().
    std::vector<fp16_t> rows;
    std::vector<float> floats, head;
    std::vector<std::byte> blocks;

    std::uint32_t find_turn(const PendingTurns& old, std::uint32_t before, std::uint32_t kind);
};

}  // namespace mixed_kv
