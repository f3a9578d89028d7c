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

// The first head_dim channels of one head, for fp16 pages the first n_tokens cells (a pinned tensor may end
// inside its last page; cold blocks always hold 64).
inline kernels::PageData page_data(const PageTable& table, const Page& page, int head, int head_dim,
                                   int n_tokens) noexcept {
    const PageLayout& layout = table.layout;
    return {layout.head_data(page, head), layout.token_stride_bytes(page),
            is_fp16(page) ? n_tokens : kPageTokens, head_dim};
}

// The overlay rows of one head as one short fp16 page: token i is the i-th set bit of page.overlay.
inline kernels::PageData overlay_data(const PageTable& table, const Page& page, int head,
                                      int head_dim) noexcept {
    const PageLayout& layout = table.layout;
    return {reinterpret_cast<const std::byte*>(page.overlay_rows) + std::size_t(head) * layout.head_bytes(),
            std::ptrdiff_t(layout.row_bytes()), std::popcount(page.overlay), head_dim};
}

}  // namespace mixed_kv::attention
