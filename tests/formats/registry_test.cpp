#include <gtest/gtest.h>

#include <set>
#include <string>

#include "kernels/kernel_test_support.h"
#include "mixed_kv/cold_format.h"
#include "mixed_kv/error.h"

namespace mixed_kv {
namespace {

TEST(ColdFormats, AreFoundByName) {
    for (const ColdFormat& format : cold_formats()) {
        EXPECT_EQ(find_cold_format(format.name), &format);
    }
    for (const char* name : {"", "f16", "q4_0", "Q4", "q1"}) {
        EXPECT_EQ(find_cold_format(name), nullptr) << name;
    }
}

TEST(ColdFormats, AreWidestFirstWithDistinctNames) {
    std::set<std::string_view> names;
    int bits = 9;
    for (const ColdFormat& format : cold_formats()) {
        EXPECT_LT(format.code_bits, bits);
        EXPECT_TRUE(names.insert(format.name).second);
        bits = format.code_bits;
    }
}

TEST(ColdFormats, CostWhatTheirWidthSays) {
    for (const ColdFormat& format : cold_formats()) {
        // A scale and a zero point per channel and 64 tokens; a scale per token and a mean per channel.
        // Narrow ones have scales of a byte, and keys 2.75 or 2 bits a channel behind 48 bytes that tell
        // which.
        const bool is_narrow = formats::is_narrow(format.code_bits);
        const double key_bits = !is_narrow ? format.code_bits + 0.5 : format.code_bits == 3 ? 3.1875 : 2.4375;
        EXPECT_DOUBLE_EQ(format.bits_per_value(KvRole::key, 128), key_bits);
        EXPECT_DOUBLE_EQ(format.bits_per_value(KvRole::value, 128),
                         format.code_bits + (is_narrow ? 0.3125 : 0.375));
        for (const int dim : testing::kHeadDims) {
            for (const KvRole role : {KvRole::key, KvRole::value}) {
                EXPECT_EQ(format.block_bytes(role, dim) % 64, 0u);
                // Less than FP16, whatever the padding.
                EXPECT_LT(format.bits_per_value(role, dim), 16.0);
            }
        }
    }
}

TEST(ColdFormats, HadamardSizeDividesTheHead) {
    const std::pair<int, int> cases[] = {{32, 32},   {40, 1},   {64, 64},   {72, 1},    {80, 1},   {96, 32},
                                         {128, 128}, {192, 64}, {256, 256}, {512, 512}, {576, 64}, {1, 1}};
    for (const auto& [dim, size] : cases) {
        EXPECT_EQ(hadamard_size(dim), size) << dim;
    }
}

// Every bit of every plane belongs to exactly one code.
TEST(ColdFormats, PlanesHoldEachCodeOnce) {
    std::mt19937 rng(60);
    for (const ColdFormat& format : cold_formats()) {
        for (const KvRole role : {KvRole::key, KvRole::value}) {
            constexpr int dim = 80;
            const testing::EncodedPage page(format, role, dim,
                                            testing::make_rows(testing::RowData::graded, dim, rng));
            for (const auto& part : page.parts()) {
                std::fill(part.data + part.layout.byte_plane, part.data + part.layout.bytes, std::byte{0});
            }
            const formats::BlockReader reader = page.reader();
            std::vector<int> seen(std::size_t(dim) * kPageTokens);
            for (const auto& part : page.parts()) {
                for (std::size_t bit = part.layout.byte_plane * 8; bit < part.layout.bytes * 8; ++bit) {
                    part.data[bit / 8] = static_cast<std::byte>(1 << bit % 8);
                    int hits = 0;
                    for (int t = 0; t < kPageTokens; ++t) {
                        for (int c = 0; c < dim; ++c) {
                            const int code = reader.code(t, c);
                            if (code != 0) {
                                ++hits;
                                seen[std::size_t(t) * dim + c] += code;
                            }
                        }
                    }
                    ASSERT_EQ(hits, 1) << format.name << " width " << part.width << " bit " << bit;
                    part.data[bit / 8] = std::byte{0};
                    bit += 52;  // a sample of all bit positions
                }
            }
            for (std::size_t i = 0; i < seen.size(); ++i) {
                ASSERT_LT(seen[i], 1 << reader.width(int(i % dim)));
            }
        }
    }
}

// Tiers follow one another without gaps or overlaps and leave no bit of the budget that a slot could have
// taken.
TEST(ColdFormats, TiersFillTheBlock) {
    std::mt19937 rng(68);
    for (const ColdFormat& format : cold_formats()) {
        for (const int dim : {16, 32, 64, 80, 128, 192, 576, 1024}) {
            if (!formats::is_tiered(true, format.code_bits, dim)) continue;
            for (const testing::RowData kind : testing::kAllRowData) {
                const testing::EncodedPage page(format, KvRole::key, dim, testing::make_rows(kind, dim, rng));
                const formats::KeyTiers tiers = formats::read_key_tiers(page.block.data(), dim);
                std::set<int> quads(tiers.order, tiers.order + dim / 4);
                EXPECT_EQ(int(quads.size()), dim / 4);
                EXPECT_EQ(*quads.rbegin(), dim / 4 - 1);
                std::size_t at = formats::tier_header_bytes(dim);
                int channels = 0, bits = 0, last_width = 7;
                for (int i = 0; i < tiers.n_tiers; ++i) {
                    const formats::KeyTier& tier = tiers.tier[i];
                    EXPECT_EQ(tier.first, channels);
                    EXPECT_EQ(tier.offset, at);
                    EXPECT_LT(tier.width, last_width);
                    last_width = tier.width;
                    channels += tier.n_channels;
                    bits += tier.width * tier.n_channels / 16;
                    at += formats::block_layout_of_tier(tier.width, tier.n_channels).bytes;
                }
                EXPECT_EQ(channels, dim);
                EXPECT_EQ(tiers.bytes, at);
                EXPECT_LE(tiers.bytes, page.block.size());
                const int budget = formats::width_budget(format.code_bits, dim);
                EXPECT_LE(bits, budget);
                if (kind == testing::RowData::constant) {
                    EXPECT_EQ(bits, 0);
                } else if (dim >= 64) {
                    EXPECT_GE(bits, budget - 1);
                }
            }
        }
    }
}

TEST(ColdFormats, WhatIsEncodedIsABlock) {
    std::mt19937 rng(72);
    for (const ColdFormat& format : cold_formats()) {
        for (const KvRole role : {KvRole::key, KvRole::value}) {
            for (const int dim : {16, 40, 64, 72, 128, 1024}) {
                for (const testing::RowData kind : testing::kAllRowData) {
                    const testing::EncodedPage page(format, role, dim, testing::make_rows(kind, dim, rng));
                    EXPECT_NO_THROW(format.check_block(role, dim, page.block.data()));
                }
            }
        }
    }
}

TEST(ColdFormats, OtherBytesAreNone) {
    std::mt19937 rng(73);
    constexpr int dim = 64, kWidths = dim / 4;
    for (const ColdFormat& format : cold_formats()) {
        for (const KvRole role : {KvRole::key, KvRole::value}) {
            const testing::EncodedPage page(format, role, dim,
                                            testing::make_rows(testing::RowData::graded, dim, rng));
            const auto refuses = [&](std::size_t at, std::initializer_list<int> bytes) {
                std::vector<std::byte> block(page.block.data(), page.block.data() + page.block.size());
                for (const int b : bytes) block[at++] = std::byte(b);
                try {
                    format.check_block(role, dim, block.data());
                } catch (const Error&) {
                    return true;
                }
                return false;
            };
            EXPECT_FALSE(refuses(0, {}));
            for (const auto& part : page.parts()) {  // an infinite or negative scale, an offset that is NaN
                const auto start = std::size_t(part.data - page.block.data());
                const bool byte = part.layout.scale_form == formats::ScaleForm::byte;
                if (part.layout.n_scales > 0) {
                    EXPECT_TRUE(byte ? refuses(start + 1, {0xf8}) : refuses(start + 2, {0x00, 0x7c}));
                    EXPECT_TRUE(byte || refuses(start + 2, {0x00, 0xbc}));
                }
                EXPECT_TRUE(refuses(start + part.layout.offsets + 4, {0x01, 0xfe}));
            }
            if (!formats::is_tiered(role == KvRole::key, format.code_bits, dim)) continue;
            const int second = std::to_integer<int>(page.block[1]);
            EXPECT_TRUE(refuses(0, {second}));              // a quad twice
            EXPECT_TRUE(refuses(0, {dim / 4}));             // no such quad
            EXPECT_TRUE(refuses(kWidths, {2, 3, 0, 0}));    // wider again
            EXPECT_TRUE(refuses(kWidths, {5, 0, 0, 0}));    // no such width
            EXPECT_TRUE(refuses(kWidths, {255, 0, 0, 0}));  // far beyond the block
            EXPECT_TRUE(refuses(kWidths, {6, 6, 6, 6}));    // more than the budget
        }
    }
}

}  // namespace
}  // namespace mixed_kv
