#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "cache/row_classes.h"
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
    // A page that gets blocks, or gives some up. `before` keeps the storage that the encode jobs read; what
    // of it is not in `after` is released by finish_freezes().
    struct Freeze {
        std::uint32_t page = 0;
        Page before, after;
        PageShift shift_before;
        int n_kept = 0;                    // blocks of `before` that are the first of `after`
        int n_retired = 0;                 // the others of `before`
        std::uint64_t retired = 0;         // their cells
        std::vector<fp16_t> rows;          // and rows, [64][row_elements]; those of other cells are not set
        PageBlock gone[Page::kMaxBlocks];  // [n_retired]
        bool encoded = false;              // already while planning
        bool is_step = false;              // down the ladder
        std::uint8_t refused = 0;
    };
    struct Encode {
        std::uint32_t freeze;
        int block;  // of `after`
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

// What can become of a page.
struct KvTensor::Change {
    bool drop = false;             // nothing, until it is written again
    unsigned retire = 0;           // bit i: block i gives its rows up
    cache::RowClasses new_blocks;  // cells of exact rows, and of rows given up, to be encoded
    int format = 0;                // to this
    bool is_step = false;          // down the ladder
    bool any() const noexcept { return retire != 0 || new_blocks.n != 0; }
};

// What a planned K-shift will do. Blocks see old turns until the commit.
struct KvTensor::ShiftPlan {
    static constexpr std::uint32_t kNoTurn = UINT32_MAX;
    // A page whose turns are too many to be noted: it becomes hot.
    struct Thaw {
        std::uint32_t page;
        std::byte* hot;
    };

    KeyShift shift;
    PendingTurns turns;
    std::vector<PageShift> shifts;       // [pages]; empty: no page has groups
    std::vector<std::uint8_t> n_groups;  // [pages]
    std::vector<Thaw> thaws;
    // Room for commit_shift().
    std::vector<fp16_t> rows;
    std::vector<float> floats, head;

    std::uint32_t find_turn(const PendingTurns& old, std::uint32_t before, std::uint32_t kind);
};

}  // namespace mixed_kv
