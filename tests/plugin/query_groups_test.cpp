// Queries of one stream in groups that see about the same pages.
#include "query_groups.h"

#include <gtest/gtest.h>

#include <utility>

namespace mixed_kv::plugin {
namespace {

constexpr std::int64_t kCells = 6 * kPageTokens;

// Every query sees the cells of one range; 0, 0: none.
struct Mask {
    explicit Mask(const std::vector<std::pair<std::int64_t, std::int64_t>>& seen)
        : cells(seen.size() * kCells, kMaskedOut) {
        for (std::size_t q = 0; q < seen.size(); ++q) {
            for (std::int64_t c = seen[q].first; c < seen[q].second; ++c)
                cells[q * kCells + std::size_t(c)] = 0;
        }
        view.data = cells.data();
        view.row_stride_bytes = kCells * std::ptrdiff_t(sizeof(fp16_t));
    }
    std::vector<fp16_t> cells;
    MaskView view;
};

std::vector<std::int64_t> sizes(const QueryGroups& queries) {
    std::vector<std::int64_t> n;
    std::int64_t next = 0;
    for (const QueryGroups::Group& group : queries.groups()) {
        EXPECT_EQ(group.first, next);
        next += group.n;
        n.push_back(group.n);
    }
    return n;
}

std::vector<std::int64_t> sizes(const Mask& mask, std::int64_t n_q, int n_stream = 1) {
    QueryGroups queries;
    queries.classify(mask.view, n_stream, n_q, kCells);
    return sizes(queries);
}

using Sizes = std::vector<std::int64_t>;

TEST(QueryGroups, OfSequencesApartAreSplit) {
    const Mask mask({{0, 128}, {128, 256}, {256, 384}});
    QueryGroups queries;
    queries.classify(mask.view, 1, 3, kCells);
    ASSERT_EQ(sizes(queries), Sizes({1, 1, 1}));
    // Each with its own rows of the mask and its own pages.
    for (std::int64_t q = 0; q < 3; ++q) {
        const QueryGroups::Group& group = queries.groups()[std::size_t(q)];
        EXPECT_EQ(group.mask.data, mask.view.row(0, 0, q));
        for (std::int64_t page = 0; page < 6; ++page) {
            EXPECT_EQ(group.pages.kind(0, 0, 0, page),
                      page / 2 == q ? MaskPages::visible : MaskPages::hidden);
        }
    }
}

TEST(QueryGroups, OfOneSequenceStayTogether) {
    const Mask mask({{0, 190}, {0, 191}, {0, 192}, {0, 193}});  // the last one reaches into another page
    QueryGroups queries;
    queries.classify(mask.view, 1, 4, kCells);
    ASSERT_EQ(sizes(queries), Sizes({4}));
    EXPECT_EQ(queries.groups()[0].mask.data, mask.view.data);
    EXPECT_EQ(queries.groups()[0].pages.kind(0, 0, 0, 0), MaskPages::visible);
    EXPECT_EQ(queries.groups()[0].pages.kind(0, 0, 0, 3), MaskPages::mixed);
    EXPECT_EQ(queries.groups()[0].pages.kind(0, 0, 0, 4), MaskPages::hidden);
}

TEST(QueryGroups, HalfInCommonIsEnough) {
    EXPECT_EQ(sizes(Mask({{0, 256}, {128, 384}}), 2), Sizes({1, 1}));  // 2 of 6 pages
    EXPECT_EQ(sizes(Mask({{0, 256}, {64, 320}}), 2), Sizes({2}));      // 3 of 5
    EXPECT_EQ(sizes(Mask({{0, 64}, {0, 64}, {128, 192}, {128, 192}}), 4), Sizes({2, 2}));
    EXPECT_EQ(sizes(Mask({{0, 64}, {128, 192}, {0, 64}}), 3), Sizes({1, 1, 1}));
    EXPECT_EQ(sizes(Mask({{0, 0}, {0, 64}, {0, 0}, {64, 128}}), 4), Sizes({3, 1}));  // padding sees nothing
}

TEST(QueryGroups, WhatIsNotAStepStaysWhole) {
    std::vector<std::pair<std::int64_t, std::int64_t>> in_turn;
    for (int q = 0; q < 65; ++q) in_turn.emplace_back(q % 2 * 64, q % 2 * 64 + 64);
    const Mask mask(in_turn);
    EXPECT_EQ(sizes(mask, 64), Sizes(64, 1));
    EXPECT_EQ(sizes(mask, 65), Sizes({65})) << "a prompt";
    EXPECT_EQ(sizes(mask, 0), Sizes({0}));
    EXPECT_EQ(sizes(mask, 1), Sizes({1}));
    Mask apart({{0, 64}, {64, 128}});
    apart.view.n_stream = 2;
    apart.view.stream_stride_bytes = apart.view.row_stride_bytes;
    EXPECT_EQ(sizes(apart, 1, 2), Sizes({1})) << "streams are apart already";
    QueryGroups all;
    all.classify(MaskView{}, 1, 4, kCells);
    EXPECT_EQ(sizes(all), Sizes({4}));
}

// A second graph with fewer groups must not see those of the first.
TEST(QueryGroups, AreReused) {
    QueryGroups queries;
    queries.classify(Mask({{0, 64}, {64, 128}, {128, 192}}).view, 1, 3, kCells);
    ASSERT_EQ(queries.groups().size(), 3U);
    const Mask one({{0, 64}, {0, 64}});
    queries.classify(one.view, 1, 2, kCells);
    EXPECT_EQ(sizes(queries), Sizes({2}));
    EXPECT_EQ(queries.groups()[0].pages.kind(0, 0, 0, 1), MaskPages::hidden);
}

}  // namespace
}  // namespace mixed_kv::plugin
