#pragma once

#include "attention/plan.h"
#include "attention/scratch.h"

namespace mixed_kv::attention {

// Attention of one tile over one range of pages: leaves, per row, m, l and the unnormalised sum of p * v in
// scratch.m, .l and .o. Two ways through a page:
//   decode path  few rows: kernels read K and V as they are stored, once for all rows of the KV head
//   tile path    many rows: K and V are decoded to float once per tile, then two matrix products
// Values of cold pages are summed in the rotated basis they are stored in; one transform at the end of the
// item joins both sums.
//
// Cells hidden by the mask get p = 0, and 0 * infinity is NaN: a row that overflowed binary16 would spoil the
// sequences that share its page but cannot see it. So an item whose result is not finite is done again,
// adding only what is visible; what is then still not finite comes from visible cells.
class ItemRunner {
  public:
    ItemRunner(const AttentionArgs& args, const kernels::KernelSet& set, const Plan& plan, const Sizes& sizes,
               const Scratch& scratch) noexcept
        : args_(args), set_(set), plan_(plan), sizes_(sizes), s_(scratch) {}

    void run(const Item& item) noexcept;

  private:
    // What the steps of one page share.
    struct PageStep {
        std::int64_t page;
        int n_tokens;  // cells of the page below n_kv
        const Page* k;
        const Page* v;
    };
    const PageTable& keys() const noexcept { return args_.k[tile_->stream]; }
    const PageTable& values() const noexcept { return args_.v_is_k ? keys() : args_.v[tile_->stream]; }

    enum class Values { any, may_be_infinite };
    void run_pages(const Item& item, Values values_are) noexcept;
    bool result_is_finite() const noexcept;

    void gather_q() noexcept;
    void clear_state() noexcept;
    void logits(const PageStep& step, bool mixed) noexcept;
    void softmax() noexcept;
    float* value_sum(const Page& v) noexcept;  // o or o_rotated, whichever basis the page's values are in

    void decode_scores(const PageStep& step) noexcept;  // decode_path.cpp
    void decode_values(const PageStep& step) noexcept;
    void tile_scores(const PageStep& step) noexcept;  // tile_path.cpp
    void decode_page_values(const PageStep& step) noexcept;
    void tile_values(const PageStep& step) noexcept;
    void visible_values(const PageStep& step) noexcept;

    const AttentionArgs& args_;
    const kernels::KernelSet& set_;
    const Plan& plan_;
    const Sizes& sizes_;
    const Scratch& s_;
    const Tile* tile_ = nullptr;
    int n_rows_ = 0;
    bool rotated_used_ = false;  // o_rotated holds something
};

// scores[r][t] of the cells of `tokens`, taken from packed[r][i], i the cell's rank among the set bits.
void scatter_columns(const float* packed, std::uint64_t tokens, int n_rows, float* scores) noexcept;
// The reverse for p: packed[r][i] = p[r][t], then p[r][t] = 0; packed columns beyond popcount(tokens) become
// 0.
void extract_columns(float* p, std::uint64_t tokens, int n_rows, float* packed) noexcept;

}  // namespace mixed_kv::attention
