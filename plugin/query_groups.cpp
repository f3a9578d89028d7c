#include "query_groups.h"

namespace mixed_kv::plugin {
namespace {

// More queries than these are a prompt, whose neighbours mostly are of one sequence.
constexpr std::int64_t kMostQueries = 64;

MaskView mask_from(MaskView mask, std::int64_t query) {
    mask.data = mask.row(0, 0, query);
    return mask;
}

}  // namespace

void QueryGroups::classify(const MaskView& mask, int n_stream, std::int64_t n_q, std::int64_t n_kv) {
    n_groups_ = 0;
    std::int64_t first = 0;
    if (mask.data != nullptr && n_stream == 1 && mask.n_head == 1 && n_q > 1 && n_q <= kMostQueries) {
        seen_.assign(std::size_t((n_kv + kPageTokens - 1) / kPageTokens), 0);
        for (std::int64_t q = 0; q < n_q; ++q) {
            query_.classify(mask_from(mask, q), 1, 1, n_kv);
            if (joins_group()) continue;
            add(mask_from(mask, first), n_stream, first, q - first, n_kv);
            first = q;
        }
    }
    add(first == 0 ? mask : mask_from(mask, first), n_stream, first, n_q - first, n_kv);
}

void QueryGroups::add(const MaskView& mask, int n_stream, std::int64_t first, std::int64_t n,
                      std::int64_t n_kv) {
    if (n_groups_ == groups_.size()) groups_.emplace_back();
    Group& group = groups_[n_groups_++];
    group.first = first;
    group.n = n;
    group.mask = mask;
    group.pages.classify(mask, n_stream, n, n_kv);
}

// Whether query_ goes with those before: at least half of the pages that it or they see are seen by both. If
// not, a group begins with it.
bool QueryGroups::joins_group() noexcept {
    std::int64_t either = 0, both = 0, own = 0;
    for (std::int64_t page = 0; page < query_.n_pages(); ++page) {
        const bool sees = query_.kind(0, 0, 0, page) != MaskPages::hidden;
        const bool seen = seen_[std::size_t(page)] != 0;
        either += sees || seen;
        both += sees && seen;
        own += sees;
    }
    const bool seen_nothing = own == either && both == 0;
    const bool together = own == 0 || seen_nothing || 2 * both >= either;
    for (std::int64_t page = 0; page < query_.n_pages(); ++page) {
        std::uint8_t& seen = seen_[std::size_t(page)];
        const bool sees = query_.kind(0, 0, 0, page) != MaskPages::hidden;
        seen = together ? std::uint8_t(seen != 0 || sees) : std::uint8_t(sees);
    }
    return together;
}

}  // namespace mixed_kv::plugin
