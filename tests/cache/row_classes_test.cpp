#include "cache/row_classes.h"

#include <gtest/gtest.h>

#include <array>
#include <bit>
#include <vector>

#include "support/random.h"

namespace mixed_kv::test {
namespace {

using cache::RowClasses;
using cache::RowSizes;

constexpr std::uint64_t kAll = ~std::uint64_t{0};

// Gaussian rows of two heads, each times its factor.
RowClasses classes(const std::array<float, 64>& factors, std::uint64_t cells, int min_rows, bool is_key) {
    Random random(1);
    std::vector<fp16_t> rows(64 * 128);
    for (std::size_t i = 0; i < rows.size(); ++i) rows[i] = fp32_to_fp16(random.normal() * factors[i / 128]);
    RowSizes sizes(cells);
    for (int head = 0; head < 2; ++head)
        sizes.add_head(64, [&](int t) { return rows.data() + t * 128 + head * 64; });
    return sizes.classes(min_rows, is_key);
}

std::array<float, 64> ones() {
    std::array<float, 64> factors;
    factors.fill(1.0f);
    return factors;
}

TEST(RowClasses, LikeRowsAreOneClass) {
    for (const bool is_key : {false, true}) {
        const RowClasses c = classes(ones(), kAll, 19, is_key);
        ASSERT_EQ(c.n, 1);
        EXPECT_EQ(c.cells[0], kAll);
        EXPECT_EQ(classes(ones(), 0xffffff, 19, is_key).cells[0], 0xffffffu);
        EXPECT_EQ(classes(ones(), 0xffff, 19, is_key).n, 0) << "too few";
    }
}

// Twenty heads, one of which has a large row: row by row as head by head.
TEST(RowClasses, RowByRowIsHeadByHead) {
    constexpr int kHeads = 20, kHeadDim = 32;
    Random random(3);
    std::vector<fp16_t> rows(64 * kHeads * kHeadDim);
    for (fp16_t& value : rows) value = fp32_to_fp16(random.normal());
    for (int large_head = 0; large_head < kHeads; ++large_head) {
        std::vector<fp16_t> some = rows;
        some[std::size_t(5 * kHeads + large_head) * kHeadDim + 7] = fp32_to_fp16(900.0f);
        RowSizes by_head(kAll), by_row(kAll);
        for (int head = 0; head < kHeads; ++head)
            by_head.add_head(kHeadDim,
                             [&](int t) { return &some[std::size_t(t * kHeads + head) * kHeadDim]; });
        by_row.add_rows(kHeads, kHeadDim, [&](int t) { return &some[std::size_t(t * kHeads) * kHeadDim]; });
        const RowClasses expected = by_head.classes(19, true), actual = by_row.classes(19, true);
        ASSERT_EQ(actual.n, 1);
        EXPECT_EQ(actual.cells[0], kAll & ~(std::uint64_t{1} << 5));
        EXPECT_EQ(actual.cells[0], expected.cells[0]);
    }
}

TEST(RowClasses, FarLargerRowsAreApart) {
    std::array<float, 64> factors = ones();
    factors[7] = 20.0f;
    factors[50] = 2000.0f;
    for (const bool is_key : {false, true}) {
        const RowClasses c = classes(factors, kAll, 19, is_key);
        ASSERT_EQ(c.n, 1);
        EXPECT_EQ(c.cells[0], kAll & ~(std::uint64_t{1} << 7) & ~(std::uint64_t{1} << 50));
    }
    for (int t = 0; t < 64; t += 2) factors[std::size_t(t)] = 100.0f;
    factors[50] = 1.0f;
    const RowClasses c = classes(factors, kAll, 19, true);
    ASSERT_EQ(c.n, 2) << "two kinds of rows, each worth a block";
    EXPECT_EQ(std::popcount(c.cells[0]), 32);
    EXPECT_EQ(c.cells[1] & 1, 1u) << "the smaller ones first";
}

TEST(RowClasses, FewSmallKeysAreKeptSmallValuesJoin) {
    std::array<float, 64> factors = ones();
    for (int t = 0; t < 5; ++t) factors[std::size_t(t)] = 0.01f;
    EXPECT_EQ(classes(factors, kAll, 19, true).cells[0], kAll << 5);
    EXPECT_EQ(classes(factors, kAll, 19, false).cells[0], kAll);
    for (int t = 0; t < 12; ++t) factors[std::size_t(t)] = 0.01f;
    EXPECT_EQ(classes(factors, kAll, 19, true).cells[0], kAll) << "too many to be kept beside a block";
}

TEST(RowClasses, WhatIsNotFiniteOrTooLargeIsNeverEncoded) {
    std::array<float, 64> factors = ones();
    factors[3] = 1e9f;  // infinite as binary16
    EXPECT_EQ(classes(factors, kAll, 19, true).cells[0], kAll & ~std::uint64_t{8});
    factors.fill(1e9f);
    EXPECT_EQ(classes(factors, kAll, 19, true).n, 0);
    factors.fill(0.0f);
    factors[3] = 1e9f;
    EXPECT_EQ(classes(factors, kAll, 19, true).cells[0], kAll & ~std::uint64_t{8}) << "beside zeros, too";
}

}  // namespace
}  // namespace mixed_kv::test
