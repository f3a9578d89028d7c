#include <gtest/gtest.h>

#include <set>
#include <string>

#include "kernels/kernel_test_support.h"
#include "mixed_kv/cold_format.h"

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
        EXPECT_DOUBLE_EQ(format.bits_per_value(KvRole::key, 128), format.code_bits + 0.5);
        EXPECT_DOUBLE_EQ(format.bits_per_value(KvRole::value, 128), format.code_bits + 0.375);
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
    for (const ColdFormat& format : cold_formats()) {
        for (const KvRole role : {KvRole::key, KvRole::value}) {
            constexpr int dim = 80;
            const bool is_key = role == KvRole::key;
            const formats::BlockLayout l = formats::block_layout(is_key, format.code_bits, dim);
            std::vector<std::byte> block(l.bytes);
            const formats::BlockReader reader(format.code_bits, role, dim, block.data());
            std::vector<int> seen(std::size_t(dim) * kPageTokens);
            const std::size_t codes_begin = l.byte_plane;
            for (std::size_t bit = codes_begin * 8; bit < l.bytes * 8; ++bit) {
                block[bit / 8] = static_cast<std::byte>(1 << bit % 8);
                int hits = 0;
                // One set bit shows in one code only; look where the layout's own group is, to stay quick.
                for (int t = 0; t < kPageTokens; ++t) {
                    for (int c = 0; c < dim; ++c) {
                        const int code = reader.code(t, c);
                        if (code != 0) {
                            ++hits;
                            seen[std::size_t(t) * dim + c] += code;
                        }
                    }
                }
                ASSERT_EQ(hits, 1) << format.name << " bit " << bit;
                block[bit / 8] = std::byte{0};
                bit += 52;  // a sample of all bit positions
            }
            for (const int sum : seen) {
                ASSERT_LT(sum, 1 << format.code_bits);
            }
        }
    }
}

}  // namespace
}  // namespace mixed_kv
