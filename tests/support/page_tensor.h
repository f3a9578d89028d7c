#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "kernels/contract.h"
#include "mixed_kv/page.h"

namespace mixed_kv::test {

// How the pages of a tensor are stored.
enum class PageMix {
    hot,
    pinned,
    cold,
    cold_overlay,  // every page cold with some overlay rows
    blocks,        // every page cold: several blocks, rotated, some cells in the overlay or never written
    all_states,    // hot, pinned, cold, overlays of 1, few and 63 rows, several blocks, empty, drawn per page
};

// One K or V tensor, built page by page without the cache: [n_stream][n_cells][n_head][head_dim] random rows.
// Every page has its own allocation, followed by fp16 NaN; rows that must not be read are NaN too: cells from
// n_cells on, and the rows under an overlay when a block is encoded.
class PageTensor {
  public:
    struct Spec {
        KvRole role = KvRole::key;
        const ColdFormat* format = nullptr;  // null: pages that would be cold are hot
        HeadShape shape;
        int n_stream = 1;
        std::int64_t n_cells = 0;  // per stream
        PageMix mix = PageMix::hot;
        std::uint64_t seed = 0;
        float sigma = 1.0f;  // standard deviation of the values
        // When set: the value of one element instead of a random one. (stream, cell, head, channel)
        std::function<float(int, std::int64_t, int, int)> value;
        std::int64_t overlay_cell =
            -1;  // of every stream: in the overlay whatever is drawn (its page must be cold)
        // When set: the state of a page instead of the mix. (stream, page)
        std::function<PageState(int, std::int64_t)> state;
    };
    PageTensor(const Spec& spec, const kernels::KernelSet& set);

    const std::vector<PageTable>& tables() const noexcept { return tables_; }  // [n_stream]
    const Spec& spec() const noexcept { return spec_; }

  private:
    struct Choice {
        PageState state;
        int overlay_rows;
        int n_blocks = 1;
    };
    Choice choose(int stream, std::int64_t page, std::uint64_t random) const;
    void fill_page(Page& page, std::int64_t index, Choice choice, const std::vector<fp16_t>& rows, int n_rows,
                   const kernels::KernelSet& set, std::uint64_t random);
    std::byte* allocate(std::size_t bytes);

    Spec spec_;
    PageLayout layout_;
    std::vector<Page> pages_;
    std::vector<PageTable> tables_;
    void fill_blocks(Page& page, int n_blocks, const std::vector<fp16_t>& rows, const kernels::KernelSet& set,
                     std::uint64_t random);
    std::vector<std::unique_ptr<PageBlock[]>> more_;
    struct Free {
        void operator()(std::byte* p) const noexcept { ::operator delete (p, std::align_val_t{64}); }
    };
    std::vector<std::unique_ptr<std::byte, Free>> blocks_;
};

}  // namespace mixed_kv::test
