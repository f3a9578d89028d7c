#pragma once

#include <cstdint>
#include <vector>

#include "mixed_kv/flash_decode.h"

// How one attention op is cut into pieces of work. Everything here depends on the arguments and the number of
// threads only, so that results do not depend on which thread runs what.
namespace mixed_kv::attention {

// Query rows that share one KV head and are worked on together: queries q0 .. q0 + n_q - 1 of one stream
// times query heads head0 .. head0 + n_head - 1. Row r is query q0 + r / n_head, head head0 + r % n_head.
struct Tile {
    int stream = 0;
    int head_kv = 0;
    int head0 = 0;
    int n_head = 0;
    std::int64_t q0 = 0;
    int n_q = 0;
    int n_parts = 1;                // page ranges; each gives one state
    std::int64_t first_state = -1;  // of [n_parts][n_rows] states; -1: the only part writes the output itself
    std::int64_t kinds = 0;         // index of page 0 in Plan::kinds

    int n_rows() const noexcept { return n_q * n_head; }
};

// Pages page_begin .. page_end - 1 for one tile.
struct Item {
    std::int32_t tile = 0;
    std::int32_t part = 0;
    std::int64_t page_begin = 0;
    std::int64_t page_end = 0;
};

// Rows row0 .. row0 + n_rows - 1 of a tile with several parts.
struct MergeJob {
    std::int32_t tile = 0;
    std::int32_t row0 = 0;
    std::int32_t n_rows = 0;
};

class Plan {
  public:
    int max_rows() const noexcept { return max_rows_; }
    std::int64_t n_pages() const noexcept { return n_pages_; }
    std::int64_t n_states() const noexcept { return n_states_; }
    const std::vector<Tile>& tiles() const noexcept { return tiles_; }
    const std::vector<Item>& items() const noexcept { return items_; }
    const std::vector<MergeJob>& merge_jobs() const noexcept { return merge_jobs_; }
    MaskPages::Kind kind(const Tile& tile, std::int64_t page) const noexcept {
        return kinds_[static_cast<std::size_t>(tile.kinds + page)];
    }

    void build(const AttentionArgs& args, const MaskPages& mask_pages, int n_threads);
    std::size_t bytes() const noexcept;

  private:
    void cut_rows(const AttentionArgs& args);
    void set_page_costs(const AttentionArgs& args);
    void set_kinds(const AttentionArgs& args, const MaskPages& mask_pages);
    std::int64_t tile_cost(const Tile& tile) const noexcept;
    void cut_pages(int n_threads);
    void add_parts(std::int32_t tile, std::int64_t cost, int n_parts);

    int max_rows_ = 0;
    int head_chunk_ = 0;
    std::int64_t query_chunk_ = 0;
    std::int64_t n_pages_ = 0;
    std::int64_t n_states_ = 0;
    std::vector<Tile> tiles_;  // by stream, KV head, head chunk, query tile from the last
    std::vector<Item> items_;
    std::vector<MergeJob> merge_jobs_;
    std::vector<std::int64_t> page_costs_;  // [n_stream][n_pages], of the largest tile
    std::vector<std::int64_t> tile_costs_;
    std::vector<MaskPages::Kind>
        kinds_;  // [n_stream][head chunks told apart by the mask][query tiles][n_pages]
};

}  // namespace mixed_kv::attention
