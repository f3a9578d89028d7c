#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>

#include "kernels/contract.h"
#include "mixed_kv/page.h"

// Pages of a table as the kernels take them.
namespace mixed_kv::attention {

// Cells beyond the table read as zero, like cells never written.
inline constexpr Page kEmptyPage{};
inline const Page& page_at(const PageTable& table, std::int64_t page) noexcept {
    return page < table.n_pages ? table.pages[page] : kEmptyPage;
}

inline bool is_fp16(const Page& page) noexcept {
    return page.state == PageState::hot || page.state == PageState::pinned;
}

// The first head_dim channels of one head of a hot or pinned page: the first n_tokens cells (a pinned tensor
// may end inside its last page).
inline kernels::PageData fp16_data(const PageTable& table, const Page& page, int head, int head_dim,
                                   int n_tokens) noexcept {
    const PageLayout& layout = table.layout;
    return {layout.head_data(page, head), layout.token_stride_bytes(page), n_tokens, head_dim};
}

// The same of one head of a block, which always has 64 rows.
inline kernels::PageData block_data(const PageTable& table, const PageBlock& block, int head,
                                    int head_dim) noexcept {
    return {table.layout.head_data(block, head), 0, kPageTokens, head_dim};
}

// The overlay rows of one head as one short fp16 page: token i is the i-th set bit of page.overlay.
inline kernels::PageData overlay_data(const PageTable& table, const Page& page, int head,
                                      int head_dim) noexcept {
    const PageLayout& layout = table.layout;
    return {reinterpret_cast<const std::byte*>(page.overlay_rows) + std::size_t(head) * layout.head_bytes(),
            std::ptrdiff_t(layout.row_bytes()), std::popcount(page.overlay), head_dim};
}

}  // namespace mixed_kv::attention
