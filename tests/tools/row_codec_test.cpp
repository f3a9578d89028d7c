// What rows become in llama.cpp's cache types and in ours, against definitions written here once more.
#include "mixed-kv-eval/row_codec.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <random>
#include <vector>

#include "mixed-kv-eval/configuration.h"
#include "mixed_kv/fp16.h"

namespace mixed_kv::test {

namespace {

using tools::RowCodec;
constexpr int kBlock = 32;  // values that share a scale in these types

float rounded(float x) { return fp16_to_fp32(fp32_to_fp16(x)); }

// The value of the largest magnitude, of equal ones the first.
float extreme(const float* x) {
    return *std::max_element(x, x + kBlock, [](float a, float b) { return std::fabs(a) < std::fabs(b); });
}

void store_q8_0(float* x) {
    const float scale = std::fabs(extreme(x)) / 127.0F, stored = rounded(scale);
    const float inverse = scale != 0 ? 1.0F / scale : 0.0F;
    for (int i = 0; i < kBlock; ++i) x[i] = stored * std::round(x[i] * inverse);
}

// q4_0 and q5_0: the extreme becomes the lowest code, -2^(bits - 1).
void store_offset(float* x, int bits) {
    const float lowest = -float(1 << (bits - 1));
    const float scale = extreme(x) / lowest, stored = rounded(scale);
    const float inverse = scale != 0 ? 1.0F / scale : 0.0F;
    for (int i = 0; i < kBlock; ++i) {
        const float code = std::floor(x[i] * inverse - lowest + 0.5F);
        x[i] = stored * (std::min(code, float((1 << bits) - 1)) + lowest);
    }
}

void store(ggml_type type, float* x) {
    if (type == GGML_TYPE_Q8_0) store_q8_0(x);
    if (type == GGML_TYPE_Q5_0) store_offset(x, 5);
    if (type == GGML_TYPE_Q4_0) store_offset(x, 4);
}

// The orthonormal Walsh-Hadamard matrix of each `size` values, in double.
std::vector<float> turned(const std::vector<float>& x, std::size_t size) {
    std::vector<float> y(x.size());
    for (std::size_t i = 0; i < x.size(); ++i) {
        const std::size_t group = i / size * size;
        double sum = 0;
        for (std::size_t j = 0; j < size; ++j) {
            sum += std::popcount((i - group) & j) % 2 == 0 ? x[group + j] : -x[group + j];
        }
        y[i] = float(sum / std::sqrt(double(size)));
    }
    return y;
}

std::vector<fp16_t> random_rows(int n, unsigned seed) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    std::vector<fp16_t> rows(static_cast<std::size_t>(n));
    for (std::size_t i = 0; i < rows.size(); ++i) {
        rows[i] = fp32_to_fp16(normal(random) * (i % 7 == 0 ? 8.0F : 1.0F));
    }
    return rows;
}

std::vector<float> floats(const std::vector<fp16_t>& rows) {
    std::vector<float> x(rows.size());
    std::transform(rows.begin(), rows.end(), x.begin(), fp16_to_fp32);
    return x;
}

constexpr ggml_type kTypes[] = {GGML_TYPE_Q8_0, GGML_TYPE_Q5_0, GGML_TYPE_Q4_0};

TEST(RowCodec, HostTypesAreWhatTheySay) {
    constexpr int kHeads = 2, kDim = 64, kRows = 5;
    for (const ggml_type type : kTypes) {
        const auto codec = tools::make_host_codec(type, false);
        const auto rows = random_rows(kRows * kHeads * kDim, 1);
        auto stored = rows;
        codec->store_and_read({KvRole::key, kHeads, kDim, stored.data(), kRows, 0b11101});
        auto expected = floats(rows);
        for (std::size_t at = 0; at < expected.size(); at += kBlock) {
            if (at / (kHeads * kDim) != 1) store(type, expected.data() + at);  // row 1 is not counted
        }
        for (std::size_t i = 0; i < rows.size(); ++i) {
            ASSERT_EQ(fp16_to_fp32(stored[i]), rounded(expected[i]))
                << ggml_type_name(type) << " value " << i;
        }
    }
    EXPECT_EQ(tools::make_host_codec(GGML_TYPE_Q4_0, true)->bits_per_value(KvRole::key, 64), 4.5);
}

// K along the whole head, V along 64 channels, neither where a head is no multiple of 64.
TEST(RowCodec, HostTypesAreRotatedAsByTheHost) {
    const auto rotation = [](KvRole role, int head_dim) {
        return head_dim % 64 != 0 ? 1 : role == KvRole::value ? 64 : head_dim == 192 ? 64 : head_dim;
    };
    for (const int head_dim : {64, 128, 192, 96}) {
        for (const KvRole role : {KvRole::key, KvRole::value}) {
            const auto size = std::size_t(rotation(role, head_dim));
            const auto rows = random_rows(2 * head_dim, 2);
            auto stored = rows;
            tools::make_host_codec(GGML_TYPE_Q8_0, true)
                ->store_and_read({role, 2, head_dim, stored.data(), 1, 1});
            auto expected = turned(floats(rows), size);
            for (std::size_t at = 0; at < expected.size(); at += kBlock) store_q8_0(expected.data() + at);
            expected = turned(expected, size);
            const auto got = floats(stored);
            for (std::size_t i = 0; i < rows.size(); ++i) {
                // A value at the edge between two codes may fall to either.
                ASSERT_NEAR(got[i], expected[i], 0.02) << "head_dim " << head_dim << " value " << i;
            }
            double error = 0;
            for (std::size_t i = 0; i < rows.size(); ++i) error += std::fabs(got[i] - expected[i]);
            EXPECT_LT(error / double(rows.size()), 1.5e-3);
        }
    }
}

// Ours: at most half a step of the channel's range off, and rows that do not count are left alone.
TEST(RowCodec, FormatsStoreCountedRows) {
    constexpr int kHeads = 2, kDim = 64, kRows = 50;
    for (const KvRole role : {KvRole::key, KvRole::value}) {
        const auto codec = tools::make_format_codec(find_cold_format("q8"), find_cold_format("q8"));
        const auto rows = random_rows(kRows * kHeads * kDim, 3);
        auto stored = rows;
        codec->store_and_read({role, kHeads, kDim, stored.data(), kRows,
                               ((std::uint64_t{1} << kRows) - 1) & ~std::uint64_t{0b1111}});
        const auto before = floats(rows), after = floats(stored);
        int changed = 0;
        for (int t = 0; t < kRows; ++t) {
            for (int i = 0; i < kHeads * kDim; ++i) {
                const auto at = std::size_t(t * kHeads * kDim + i);
                EXPECT_NEAR(after[at], before[at], t < 4 ? 0 : 0.3) << t << ' ' << i;
                changed += after[at] != before[at];
            }
        }
        EXPECT_GT(changed, kRows * kHeads * kDim / 2);
    }
    const auto keys_only = tools::make_format_codec(find_cold_format("q4"), nullptr);
    auto stored = random_rows(kDim, 4);
    const auto rows = stored;
    keys_only->store_and_read({KvRole::value, 1, kDim, stored.data(), 1, 1});
    EXPECT_EQ(stored, rows);
    EXPECT_EQ(keys_only->bits_per_value(KvRole::key, 64), 4.5);
    EXPECT_EQ(keys_only->bits_per_value(KvRole::value, 64), 16);
}

TEST(RowCodec, RowsThatATypeCannotStore) {
    EXPECT_EQ(tools::make_host_codec(GGML_TYPE_Q4_0, true)->refusal(2, 16), "");
    EXPECT_NE(tools::make_host_codec(GGML_TYPE_Q4_0, true)->refusal(1, 40), "");
}

TEST(Configuration, WindowsBesideTypesAndFormats) {
    const auto host = tools::parse_configuration("host:q5_0:norot+128+2");
    EXPECT_EQ(host.owner, tools::CacheOwner::plugin);
    EXPECT_EQ(host.host_type, GGML_TYPE_Q5_0);
    EXPECT_FALSE(host.rotation);
    EXPECT_EQ(host.coded->window, 128);
    EXPECT_EQ(host.coded->sinks, 2);
    const auto ours = tools::parse_configuration("format:q4/q2+0+0");
    EXPECT_EQ(ours.key_format->name, "q4");
    EXPECT_EQ(ours.value_format->name, "q2");
    EXPECT_TRUE(ours.coded->none());
    EXPECT_EQ(tools::parse_configuration("format:q4/f16+0+0").value_format, nullptr);
    const auto list = tools::parse_configurations("mixed:k=q4,v=q4,host:q4_0+64+4,format:q4+0+0,f16");
    ASSERT_EQ(list.size(), 4U);
    EXPECT_EQ(list[0].name, "mixed:k=q4,v=q4");
    EXPECT_EQ(list[2].name, "format:q4+0+0");
}

}  // namespace

}  // namespace mixed_kv::test
