#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "mixed_kv/flash_decode.h"

namespace mixed_kv::plugin {

// The queries of an attention, in pieces that see about the same pages. Where sequences share one stream of
// cells (llama-server's default), a step has one query per sequence, and each sees cells of its own: attended
// together, every query would be multiplied with the pages of all.
class QueryGroups {
  public:
    struct Group {
        std::int64_t first = 0, n = 0;  // queries
        MaskView mask;                  // of these queries
        MaskPages pages;
    };

    // Reuses its memory from call to call.
    void classify(const MaskView& mask, int n_stream, std::int64_t n_q, std::int64_t n_kv);
    std::span<const Group> groups() const noexcept { return {groups_.data(), n_groups_}; }

  private:
    void add(const MaskView& mask, int n_stream, std::int64_t first, std::int64_t n, std::int64_t n_kv);
    bool joins_group() noexcept;

    std::vector<Group> groups_;
    std::size_t n_groups_ = 0;
    MaskPages query_;                 // of the query that is looked at
    std::vector<std::uint8_t> seen_;  // per page, by queries of the group that grows
};

}  // namespace mixed_kv::plugin
