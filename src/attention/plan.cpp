#include "attention/plan.h"

#include <algorithm>
#include <bit>

#include "attention/page_access.h"
#include "kernels/contract.h"

namespace mixed_kv::attention {

namespace {

// Most rows of a tile: enough to pay for reading a page again for the next tile, few enough that q, both
// accumulators, the scores and a page stay in a 512 KiB L2 at head_dim 128.
constexpr int kTileRows = 128;

// Parts wanted per thread: more even out threads of unequal speed, fewer save merging.
constexpr std::int64_t kPartsPerThread = 8;

// Least cost of a part, in the units of page_cost(). Below it, gathering q and merging the state would show.
constexpr std::int64_t kMinPartCost = 96 * 1024;

constexpr int kMergeRows = 4;  // rows of one merge job

// Cost of one page for one tile: bytes read, plus arithmetic at about two multiply-adds in the time of a
// byte.
std::int64_t page_cost(const PageTable& table, std::int64_t page_index, int head_dim, int rows) noexcept {
    const Page& page = page_at(table, page_index);
    const std::int64_t work =
        std::int64_t(kPageTokens) * rows * head_dim / 2 * (page.n_blocks > 1 ? page.n_blocks : 1);
    std::int64_t bytes = 0;
    switch (page.state) {
        case PageState::empty:
            return 0;
        case PageState::hot:
        case PageState::pinned:
            bytes = std::int64_t(kPageTokens) * head_dim * 2;
            break;
        case PageState::cold:
            for (int i = 0; i < page.n_blocks; ++i) bytes += page.block(i).head_bytes;
            // Few pages have an overlay, and a baseline CPU has no instruction that counts bits.
            if (page.overlay != 0)
                bytes += std::popcount(page.overlay) * std::int64_t(head_dim) * (2 + rows / 2);
            break;
    }
    return bytes + work;
}

}  // namespace

void Plan::build(const AttentionArgs& args, const MaskPages& mask_pages, int n_threads) {
    n_pages_ = (args.n_kv + kPageTokens - 1) / kPageTokens;
    cut_rows(args);
    set_kinds(args, mask_pages);
    set_page_costs(args);
    cut_pages(n_threads);
}

// Tiles: all rows of a KV head where these are few, else pieces of about kTileRows rows, which hold 16, 32,
// ... or a divisor of 16 queries, so that they meet the mask's 16-query tiles.
void Plan::cut_rows(const AttentionArgs& args) {
    const int n_gqa = args.n_head / args.n_head_kv;
    head_chunk_ = n_gqa;
    query_chunk_ = args.n_q;
    if (args.n_q * n_gqa > kTileRows) {
        head_chunk_ = std::min(n_gqa, kTileRows);
        const int queries = std::max(1, kTileRows / head_chunk_);
        query_chunk_ = queries >= MaskPages::kTileQueries
                           ? queries / MaskPages::kTileQueries * MaskPages::kTileQueries
                           : static_cast<int>(std::bit_floor(unsigned(queries)));
        query_chunk_ = std::min<std::int64_t>(query_chunk_, args.n_q);
    }
    max_rows_ = static_cast<int>(query_chunk_) * head_chunk_;

    const std::int64_t query_tiles = args.n_q == 0 ? 0 : (args.n_q + query_chunk_ - 1) / query_chunk_;
    tiles_.clear();
    for (int stream = 0; stream < args.n_stream; ++stream) {
        for (int head_kv = 0; head_kv < args.n_head_kv; ++head_kv) {
            for (int head = 0; head < n_gqa; head += head_chunk_) {
                // Causal prefill: the last queries see most pages; started first, they do not end last.
                for (std::int64_t i = query_tiles - 1; i >= 0; --i) {
                    const std::int64_t q0 = i * query_chunk_;
                    Tile tile;
                    tile.stream = stream;
                    tile.head_kv = head_kv;
                    tile.head0 = head_kv * n_gqa + head;
                    tile.n_head = std::min(head_chunk_, n_gqa - head);
                    tile.q0 = q0;
                    tile.n_q = static_cast<int>(std::min(query_chunk_, args.n_q - q0));
                    tiles_.push_back(tile);
                }
            }
        }
    }
}

// What each page holds for each tile: the mask's kinds of all 16-query tiles and heads that the tile touches.
// Tiles that differ only in heads which the mask does not tell apart share their kinds.
void Plan::set_kinds(const AttentionArgs& args, const MaskPages& mask_pages) {
    const bool by_head = mask_pages.n_head() > 1;
    const std::int64_t query_tiles = args.n_q == 0 ? 0 : (args.n_q + query_chunk_ - 1) / query_chunk_;
    const std::int64_t tiles_per_stream =
        args.n_stream == 0 ? 0 : std::int64_t(tiles_.size()) / args.n_stream;
    const std::int64_t kinds_per_stream = by_head ? tiles_per_stream : query_tiles;
    kinds_.resize(static_cast<std::size_t>(args.n_stream * kinds_per_stream * n_pages_));

    for (std::size_t i = 0; i < tiles_.size(); ++i) {
        Tile& tile = tiles_[i];
        const std::int64_t in_stream = std::int64_t(i) - tile.stream * tiles_per_stream;
        const std::int64_t slot = by_head ? in_stream : in_stream % query_tiles;
        tile.kinds = (tile.stream * kinds_per_stream + slot) * n_pages_;
        if (slot != in_stream) continue;  // an earlier tile of this stream has filled them

        const std::int64_t mask_first = tile.q0 / MaskPages::kTileQueries;
        const std::int64_t mask_last = (tile.q0 + tile.n_q - 1) / MaskPages::kTileQueries;
        const int n_heads = by_head ? tile.n_head : 1;
        for (std::int64_t page = 0; page < n_pages_; ++page) {
            MaskPages::Kind kind = mask_pages.kind(tile.stream, tile.head0, mask_first, page);
            for (int head = 0; head < n_heads && kind != MaskPages::mixed; ++head) {
                for (std::int64_t q = head == 0 ? mask_first + 1 : mask_first; q <= mask_last; ++q) {
                    if (mask_pages.kind(tile.stream, tile.head0 + head, q, page) != kind)
                        kind = MaskPages::mixed;
                }
            }
            kinds_[static_cast<std::size_t>(tile.kinds + page)] = kind;
        }
    }
}

// Of the pages that any tile sees: where sequences share a stream, most are others'.
void Plan::set_page_costs(const AttentionArgs& args) {
    page_costs_.assign(static_cast<std::size_t>(args.n_stream * n_pages_), 0);
    const std::size_t n_kinds = kinds_.size() / std::max<std::size_t>(page_costs_.size(), 1);  // per page
    for (int stream = 0; stream < args.n_stream; ++stream) {
        const PageTable& v = args.v_is_k ? args.k[stream] : args.v[stream];
        const auto* kinds = kinds_.data() + std::size_t(stream) * n_kinds * std::size_t(n_pages_);
        for (std::int64_t page = 0; page < n_pages_; ++page) {
            bool seen = false;
            for (std::size_t i = 0; i < n_kinds && !seen; ++i)
                seen = kinds[i * std::size_t(n_pages_) + std::size_t(page)] != MaskPages::hidden;
            if (!seen) continue;
            // Scores and softmax cost something even where K and V are empty.
            page_costs_[std::size_t(stream * n_pages_ + page)] =
                page_cost(args.k[stream], page, args.head_dim_k, max_rows_) +
                page_cost(v, page, args.head_dim_v, max_rows_) + kPageTokens * max_rows_ * 4;
        }
    }
}

std::int64_t Plan::tile_cost(const Tile& tile) const noexcept {
    const std::int64_t* costs = page_costs_.data() + tile.stream * n_pages_;
    std::int64_t sum = 0;
    for (std::int64_t page = 0; page < n_pages_; ++page) {
        if (kind(tile, page) != MaskPages::hidden) sum += costs[page];
    }
    return sum;
}

void Plan::cut_pages(int n_threads) {
    std::int64_t total = 0;
    tile_costs_.resize(tiles_.size());
    for (std::size_t i = 0; i < tiles_.size(); ++i) {
        // Neighbours that share their kinds share the sum.
        const bool same = i > 0 && tiles_[i].kinds == tiles_[i - 1].kinds;
        tile_costs_[i] = same ? tile_costs_[i - 1] : tile_cost(tiles_[i]);
        total += tile_costs_[i];
    }
    const std::int64_t part_cost = std::max(kMinPartCost, total / (kPartsPerThread * std::max(n_threads, 1)));

    items_.clear();
    merge_jobs_.clear();
    n_states_ = 0;
    for (std::size_t i = 0; i < tiles_.size(); ++i) {
        Tile& tile = tiles_[i];
        const std::int64_t cost = tile_costs_[i];
        // One thread gains nothing from parts.
        const std::int64_t wanted = n_threads <= 1 ? 1 : (cost + part_cost / 2) / part_cost;
        tile.n_parts =
            static_cast<int>(std::clamp<std::int64_t>(wanted, 1, std::max<std::int64_t>(n_pages_, 1)));
        tile.first_state = -1;
        if (tile.n_parts > 1) {
            tile.first_state = n_states_;
            n_states_ += std::int64_t(tile.n_parts) * tile.n_rows();
            for (int row = 0; row < tile.n_rows(); row += kMergeRows) {
                merge_jobs_.push_back({std::int32_t(i), row, std::min(kMergeRows, tile.n_rows() - row)});
            }
        }
        add_parts(std::int32_t(i), cost, tile.n_parts);
    }
}

void Plan::add_parts(std::int32_t tile_index, std::int64_t cost, int n_parts) {
    const Tile& tile = tiles_[std::size_t(tile_index)];
    if (tile_index > 0) {
        // Neighbours that share their kinds are cut alike: the heads of a long context.
        const Tile& before = tiles_[std::size_t(tile_index - 1)];
        if (before.kinds == tile.kinds && before.n_parts == n_parts) {
            const std::size_t first = items_.size() - std::size_t(n_parts);
            for (std::size_t i = first; i < first + std::size_t(n_parts); ++i) {
                Item item = items_[i];
                item.tile = tile_index;
                items_.push_back(item);
            }
            return;
        }
    }
    const std::int64_t* costs = page_costs_.data() + tile.stream * n_pages_;
    std::int64_t page = 0, done = 0;
    for (int part = 0; part < n_parts; ++part) {
        Item item{tile_index, part, page, n_pages_};
        if (part + 1 < n_parts) {
            const std::int64_t end = cost * (part + 1) / n_parts;
            for (; page < n_pages_ && done < end; ++page) {
                if (kind(tile, page) != MaskPages::hidden) done += costs[page];
            }
            item.page_end = page;
        }
        items_.push_back(item);
    }
}

std::size_t Plan::bytes() const noexcept {
    return tiles_.capacity() * sizeof(Tile) + items_.capacity() * sizeof(Item) +
           merge_jobs_.capacity() * sizeof(MergeJob) + kinds_.capacity() * sizeof(MaskPages::Kind) +
           (page_costs_.capacity() + tile_costs_.capacity()) * sizeof(std::int64_t);
}

}  // namespace mixed_kv::attention
