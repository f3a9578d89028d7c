#include <algorithm>
#include <cstring>

#include "mixed_kv/flash_decode.h"

namespace mixed_kv {

namespace {

constexpr std::uint64_t kFourHidden = 0xfc00fc00fc00fc00u;  // four fp16 -inf
constexpr int kWordsPerPage = kPageTokens / 4;

// Kind of 64 mask values. Two reductions over 16 words, which the compiler vectorises; no early exit, because
// a branch per word costs more than the words.
MaskPages::Kind classify_full_page(const fp16_t* mask) noexcept {
    std::uint64_t words[kWordsPerPage];
    std::memcpy(words, mask, sizeof words);
    std::uint64_t not_visible = 0, not_hidden = 0;
    for (int i = 0; i < kWordsPerPage; ++i) {
        not_visible |= words[i];
        not_hidden |= words[i] ^ kFourHidden;
    }
    if (not_visible == 0) return MaskPages::visible;
    return not_hidden == 0 ? MaskPages::hidden : MaskPages::mixed;
}

// The last page when it has fewer than 64 cells: never visible as a whole.
MaskPages::Kind classify_partial_page(const fp16_t* mask, std::int64_t n) noexcept {
    return std::all_of(mask, mask + n, [](fp16_t m) { return m == kMaskedOut; }) ? MaskPages::hidden
                                                                                 : MaskPages::mixed;
}

}  // namespace

void MaskPages::classify(const MaskView& mask, int n_stream, std::int64_t n_q, std::int64_t n_kv) {
    n_kv_ = n_kv;
    n_pages_ = (n_kv + kPageTokens - 1) / kPageTokens;
    n_tiles_ = (n_q + kTileQueries - 1) / kTileQueries;
    all_visible_ = mask.data == nullptr;
    n_head_ = all_visible_ ? 1 : mask.n_head;
    mask_streams_ = all_visible_ ? 1 : std::min(mask.n_stream, n_stream);
    if (all_visible_) return;

    const std::int64_t full_pages = n_kv / kPageTokens;
    kinds_.resize(static_cast<std::size_t>(mask_streams_ * n_head_ * n_tiles_ * n_pages_));
    Kind* kinds = kinds_.data();
    for (int stream = 0; stream < mask_streams_; ++stream) {
        for (int head = 0; head < n_head_; ++head) {
            for (std::int64_t tile = 0; tile < n_tiles_; ++tile, kinds += n_pages_) {
                const std::int64_t first = tile * kTileQueries;
                const std::int64_t last = std::min(first + kTileQueries, n_q);
                for (std::int64_t query = first; query < last; ++query) {
                    const fp16_t* row = mask.row(stream, head, query);
                    for (std::int64_t page = 0; page < n_pages_; ++page) {
                        // A mixed page stays mixed whatever the other queries see.
                        if (query > first && kinds[page] == mixed) continue;
                        const fp16_t* cells = row + page * kPageTokens;
                        const Kind kind = page < full_pages
                                              ? classify_full_page(cells)
                                              : classify_partial_page(cells, n_kv % kPageTokens);
                        kinds[page] = query == first || kinds[page] == kind ? kind : mixed;
                    }
                }
            }
        }
    }
}

MaskPages::Kind MaskPages::kind(int stream, int head, std::int64_t query_tile,
                                std::int64_t page) const noexcept {
    if (all_visible_) return (page + 1) * kPageTokens > n_kv_ ? mixed : visible;
    // Asked for every page of every op, and mostly of masks that all streams and heads share: no division.
    const int mask_stream = mask_streams_ == 1 ? 0 : stream % mask_streams_;
    const int mask_head = n_head_ == 1 ? 0 : head % n_head_;
    const std::int64_t map = (std::int64_t(mask_stream) * n_head_ + mask_head) * n_tiles_;
    return kinds_[static_cast<std::size_t>((map + query_tile) * n_pages_ + page)];
}

}  // namespace mixed_kv
