#pragma once

#include <cstddef>
#include <cstdint>

#include "mixed_kv/cold_format.h"
#include "mixed_kv/fp16.h"
#include "mixed_kv/key_shift.h"

namespace mixed_kv {

// Heads of one K or V row: a row is [n_head][head_dim].
struct HeadShape {
    int n_head = 0;
    int head_dim = 0;
    bool operator==(const HeadShape&) const = default;
    int row_elements() const noexcept { return n_head * head_dim; }
};

enum class PageState : std::uint8_t {
    empty,   // no storage; reads as zero
    hot,     // fp16 [n_head][64][head_dim]
    cold,    // blocks, each with the cells that it answers for, plus overlay rows
    pinned,  // fp16 [64][n_head][head_dim] in ggml's layout, at the tensor's own address
};

// 64 rows in a cold format, encoded together once and never changed: [n_head][head_bytes]. A page may have
// several, of rows that were written at different times, and two neighbouring pages may share one, of rows
// that a restored state brought at cells which are not those of a page.
struct PageBlock {
    std::byte* data = nullptr;
    std::uint64_t cells = 0;  // of the page: those whose rows it holds. The others were written since, or
                              // are kept exactly; what it has in their places is of no use.
    std::uint32_t* users = nullptr;  // [2] of a block that pages share: how many do, cells in all; else null
    std::uint8_t rotation = 0;       // cell t of the page is row (t - rotation) mod 64
    std::uint8_t format = 0;         // index in cold_formats()
    std::uint32_t head_bytes = 0;    // of one head, as the format has it; a multiple of 64

    int row_of(int cell) const noexcept { return (cell - rotation) & (kPageTokens - 1); }
};

// 64 consecutive cells of one K or V tensor in one stream. A set of cells is a word: bit t is cell 64 * page
// + t. The row of a written cell of a cold page is in the overlay or in one block, never in two places.
struct Page {
    static constexpr int kMaxBlocks = 4;

    PageState state = PageState::empty;
    std::uint8_t n_blocks = 0;       // cold only
    std::uint32_t shift_groups = 0;  // cold keys: groups of PageTable::shifts in use
    std::uint64_t written = 0;       // cells that hold a row; others read as zero
    std::uint64_t overlay = 0;       // cold only: cells whose row is in overlay_rows
    std::uint64_t settled = 0;  // written cells whose row is not to be encoded: it was, or a state brought it
    std::byte* data = nullptr;  // hot, pinned: rows, see PageState
    fp16_t* overlay_rows = nullptr;  // [popcount(overlay)][n_head][head_dim], in cell order
    PageBlock first;                 // cold
    PageBlock* more = nullptr;       // [kMaxBlocks - 1], cold pages with several blocks

    PageBlock& block(int i) noexcept { return i == 0 ? first : more[i - 1]; }
    const PageBlock& block(int i) const noexcept { return i == 0 ? first : more[i - 1]; }
    std::uint64_t block_cells() const noexcept {
        std::uint64_t cells = 0;
        for (int i = 0; i < n_blocks; ++i) cells |= block(i).cells;
        return cells;
    }
    // Whether one block, at its own cells, is all there is beside the overlay: what most cold pages are.
    bool is_plain() const noexcept {
        return n_blocks == 1 && first.rotation == 0 && (first.cells | overlay) == ~std::uint64_t{0};
    }
};

// How to read pages: what the attention and the traces need beside the Page records.
struct PageLayout {
    HeadShape shape;
    KvRole role = KvRole::key;
    // Of new blocks, the widest of them in a tensor with a budget; nullptr: there are none. What a block is
    // in, it says itself.
    const ColdFormat* format = nullptr;
    int format_index = -1;  // its index in cold_formats()

    // Base of one head's rows in a hot or pinned page; of a cold page, of one head in its first block.
    const std::byte* head_data(const Page& page, int head) const noexcept {
        switch (page.state) {
            case PageState::hot:
                return page.data + std::size_t(head) * kPageTokens * head_bytes();
            case PageState::pinned:
                return page.data + std::size_t(head) * head_bytes();
            case PageState::cold:
                return page.n_blocks == 0 ? nullptr : head_data(page.first, head);
            case PageState::empty:
                break;
        }
        return nullptr;
    }
    const std::byte* head_data(const PageBlock& block, int head) const noexcept {
        return block.data + std::size_t(head) * block.head_bytes;
    }
    // Bytes from one token's row to the next in a hot or pinned page, 0 in blocks.
    std::ptrdiff_t token_stride_bytes(const Page& page) const noexcept {
        switch (page.state) {
            case PageState::hot:
                return std::ptrdiff_t(head_bytes());
            case PageState::pinned:
                return std::ptrdiff_t(row_bytes());
            default:
                return 0;
        }
    }
    std::size_t head_bytes() const noexcept { return std::size_t(shape.head_dim) * sizeof(fp16_t); }
    std::size_t row_bytes() const noexcept { return std::size_t(shape.row_elements()) * sizeof(fp16_t); }
    std::size_t block_bytes = 0;  // of one head in a block of `format`
};

// One stream of a K or V tensor, for reading. Valid until the tensor's next write.
struct PageTable {
    const Page* pages = nullptr;
    std::int64_t n_pages = 0;
    PageLayout layout;
    // Of pages with shift_groups > 0; null when there are none.
    const PageShift* shifts = nullptr;  // [n_pages]
    const PendingTurns* turns = nullptr;
};

}  // namespace mixed_kv
