#pragma once

#include "attention/plan.h"
#include "attention/scratch.h"

namespace mixed_kv::attention {

// Attention of one tile over one range of pages: leaves, per row, m, l and the unnormalised sum of p * v in
// scratch.m, .l and .o. Kernels read K and V as they are stored, also for many rows: decoding a page and
// multiplying floats is no faster (AVX2, 128 rows, q4 and q8: mixed-kv-bench prefill --depth 8192).
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
        : args_(args), set_(set), plan_(plan), sizes_(sizes), all_(scratch), s_(scratch) {}

    void run(const Item& item) noexcept;

  private:
    // What the steps of one page share.
    struct PageStep {
        std::int64_t page;
        int n_tokens;  // cells of the page below n_kv, up to the last one that one of the rows sees
        const Page* k;
        const Page* v;
        bool mixed;  // some of the rows see some of the page
    };
    const PageTable& keys() const noexcept { return args_.k[tile_->stream]; }
    const PageTable& values() const noexcept { return args_.v_is_k ? keys() : args_.v[tile_->stream]; }

    enum class Values { any, may_be_infinite };
    void run_pages(const Item& item, Values values_are) noexcept;
    void run_group(const PageStep* steps, int n, Values values_are) noexcept;
    void scores_of(const PageStep& step) noexcept;
    void add_values_of(const PageStep& step, Values values_are) noexcept;
    void run_mixed_page(PageStep step, Values values_are) noexcept;
    int seen_tokens(const PageStep& step, int query) const noexcept;
    bool result_is_finite() const noexcept;

    // Floats from one page's scores to those of the next page of the group.
    std::ptrdiff_t page_stride() const noexcept { return std::ptrdiff_t(sizes_.max_rows) * kPageTokens; }
    void take_rows(int first_query, int n_queries) noexcept;
    void gather_q() noexcept;
    void clear_state() noexcept;
    void logits(const PageStep& step) noexcept;
    void softmax(int n_pages) noexcept;
    float* value_sum(const Page& v) noexcept;  // o or o_rotated, whichever basis the page's values are in

    int rows_per_call(const Page& page) const noexcept;  // stored_pages.cpp
    void stored_scores(const PageStep& step) noexcept;
    void stored_values(const PageStep& step) noexcept;
    bool fp16_pair(const PageStep& step) const noexcept;
    const std::byte* next_data(const PageTable& table, const PageStep& step, PageState state) const noexcept;
    void overlay_scores(const Page& page) noexcept;
    void block_scores(const PageStep& step) noexcept;  // block_keys.cpp
    void score_cells(const PageBlock& block, std::uint64_t cells, const float* q) noexcept;
    const float* turned_q(const float* turn) noexcept;
    void turn_decoded_keys(const Page& page, std::int64_t index) noexcept;
    void decode_blocks(const Page& page, int width) noexcept;
    void values_to_float(const PageStep& step) noexcept;  // decoded_values.cpp
    void decoded_values(const PageStep& step) noexcept;
    void visible_values(const PageStep& step) noexcept;

    const AttentionArgs& args_;
    const kernels::KernelSet& set_;
    const Plan& plan_;
    const Sizes& sizes_;
    const Scratch& all_;
    const Tile* tile_ = nullptr;
    // The rows that are worked on: all of the tile but in pages that only some of its queries see.
    Scratch s_;
    int first_query_ = 0, n_queries_ = 0, n_rows_ = 0;
    std::int64_t page_end_ = 0;      // of the item
    bool rotated_used_ = false;      // o_rotated holds something
    const float* q_turn_ = nullptr;  // the turn that these rows have in q_turned
};

// scores[r][t] of the cells of `tokens`, taken from packed[r][i], i the cell's rank among the set bits.
void scatter_columns(const float* packed, std::uint64_t tokens, int n_rows, float* scores) noexcept;
// p of a block's cells, at the places of their rows; other rows get 0. out: [n_rows][64].
void take_columns(const float* p, const PageBlock& block, int n_rows, float* out) noexcept;
// The reverse for p: packed[r][i] = p[r][t], then p[r][t] = 0; packed columns beyond popcount(tokens) become
// 0.
void extract_columns(float* p, std::uint64_t tokens, int n_rows, float* packed) noexcept;

}  // namespace mixed_kv::attention
