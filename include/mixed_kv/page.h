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
    cold,    // [n_head][block_bytes], plus overlay rows
    pinned,  // fp16 [64][n_head][head_dim] in ggml's layout, at the tensor's own address
};

// 64 consecutive cells of one K or V tensor in one stream. A set of cells is a word: bit t is cell 64 * page
// + t.
struct Page {
    PageState state = PageState::empty;
    std::uint32_t shift_groups = 0;  // cold keys: groups of PageTable::shifts in use
    std::uint64_t written = 0;       // cells that hold a row; others read as zero
    std::uint64_t overlay = 0;       // cold only: cells whose row is in overlay_rows and overrides the block
    std::byte* data = nullptr;       // by state, see PageState
    fp16_t* overlay_rows = nullptr;  // [popcount(overlay)][n_head][head_dim], in cell order
};

// How to read pages: what the attention and the traces need beside the Page records.
struct PageLayout {
    HeadShape shape;
    KvRole role = KvRole::key;
    const ColdFormat* format = nullptr;  // of cold pages; nullptr: there are none
    int format_index = -1;               // its index in cold_formats()

    // Base of one head's data, and bytes from one token's row to the next (0 for cold blocks).
    const std::byte* head_data(const Page& page, int head) const noexcept {
        switch (page.state) {
            case PageState::hot:
                return page.data + std::size_t(head) * kPageTokens * head_bytes();
            case PageState::pinned:
                return page.data + std::size_t(head) * head_bytes();
            case PageState::cold:
                return page.data + std::size_t(head) * block_bytes;
            case PageState::empty:
                break;
        }
        return nullptr;
    }
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
    std::size_t block_bytes = 0;  // one head's cold block
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
