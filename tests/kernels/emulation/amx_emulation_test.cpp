// The tile emulation against plain arithmetic, and its faults.

#include "amx_emulation.h"
#include "kernels/amx/tiles.h"
#include "kernels/kernel_test_support.h"

namespace mixed_kv::testing {
namespace {

using kernels::amx::kWholeTiles;
using kernels::amx::TileConfig;

class AmxEmulation : public ::testing::Test {
  protected:
    void SetUp() override {
        if (!is_supported("amx_emulated")) {
            GTEST_SKIP() << "the emulation needs AVX2";
        }
        emulation::tile_release();
    }
    void TearDown() override { emulation::tile_release(); }
};

TileConfig with(void (*change)(TileConfig&)) {
    TileConfig c = kWholeTiles;
    change(c);
    return c;
}

TEST_F(AmxEmulation, IntegerProductsAreExactAndObeyTheShapes) {
    std::mt19937 rng(71);
    for (int round = 0; round < 50; ++round) {
        const int rows = 1 + int(rng() % 16), depth = 4 * (1 + int(rng() % 16)),
                  columns = 1 + int(rng() % 16);
        TileConfig c = with([](TileConfig& x) { x = TileConfig{1, 0, {}, {}, {}, {}, {}}; });
        c.rows[0] = c.rows[1] = std::uint8_t(rows);
        c.row_bytes[0] = std::uint16_t(4 * columns), c.row_bytes[1] = std::uint16_t(depth);
        c.rows[2] = std::uint8_t(depth / 4), c.row_bytes[2] = std::uint16_t(4 * columns);
        emulation::tile_load_config(&c);
        // Exactly what the shapes allow to be read and written.
        const Guarded<std::int8_t> a(std::size_t(rows) * depth), b(std::size_t(depth) * columns);
        const Guarded<std::int32_t> sum(std::size_t(rows) * columns);
        for (auto& x : a.span()) x = static_cast<std::int8_t>(round == 0 ? -128 : int(rng() & 255) - 128);
        for (auto& x : b.span()) x = static_cast<std::int8_t>(round == 0 ? -128 : int(rng() & 255) - 128);
        for (auto& x : sum.span()) x = static_cast<std::int32_t>(rng());
        const std::vector<std::int32_t> before(sum.span().begin(), sum.span().end());
        emulation::tile_load(0, sum.data(), 4 * columns);
        emulation::tile_load(1, a.data(), depth);
        emulation::tile_load(2, b.data(), 4 * columns);
        emulation::tile_dpbssd(0, 1, 2);
        emulation::tile_store(0, sum.data(), 4 * columns);
        for (int m = 0; m < rows; ++m) {
            for (int n = 0; n < columns; ++n) {
                std::int64_t want = before[std::size_t(m) * columns + n];
                for (int k = 0; k < depth; ++k) {
                    want +=
                        a[std::size_t(m) * depth + k] * b[std::size_t(k / 4) * 4 * columns + 4 * n + k % 4];
                }
                ASSERT_EQ(sum[std::size_t(m) * columns + n], static_cast<std::int32_t>(want));
            }
        }
    }
}

TEST_F(AmxEmulation, Bf16ProductsOfSmallIntegersAreExact) {
    std::mt19937 rng(72);
    emulation::tile_load_config(&kWholeTiles);
    float x[2][16][32], sum[16][16];
    std::uint16_t a[16][32], b[16][32];
    const auto bf16 = [](float value) {
        std::uint32_t bits;
        std::memcpy(&bits, &value, sizeof bits);
        return static_cast<std::uint16_t>(bits >> 16);
    };
    for (int r = 0; r < 16; ++r) {
        for (int i = 0; i < 32; ++i) {
            x[0][r][i] = float(int(rng() & 255) - 128), x[1][r][i] = float(int(rng() & 255) - 128);
            a[r][i] = bf16(x[0][r][i]), b[r][i] = bf16(x[1][r][i]);
        }
        for (float& s : sum[r]) s = 0.5f;
    }
    emulation::tile_load(0, sum, 64);
    emulation::tile_load(1, a, 64);
    emulation::tile_load(2, b, 64);
    emulation::tile_dpbf16ps(0, 1, 2);
    emulation::tile_store(0, sum, 64);
    for (int m = 0; m < 16; ++m) {
        for (int n = 0; n < 16; ++n) {
            float want = 0.5f;
            for (int k = 0; k < 32; ++k) want += x[0][m][k] * x[1][k / 2][2 * n + k % 2];
            ASSERT_EQ(sum[m][n], want);
        }
    }
}

TEST_F(AmxEmulation, Bf16ProductsFlushSubnormalNumbers) {
    emulation::tile_load_config(&kWholeTiles);
    std::uint16_t a[16][32] = {}, b[16][32] = {};
    float sum[16][16] = {};
    a[0][0] = 0x0040, b[0][0] = 0x7f00;  // subnormal * 2^127
    a[1][0] = 0x0080, b[0][2] = 0x3f00;  // 2^-126 * 0.5
    sum[2][0] = 1e-40f;
    emulation::tile_load(0, sum, 64);
    emulation::tile_load(1, a, 64);
    emulation::tile_load(2, b, 64);
    emulation::tile_dpbf16ps(0, 1, 2);
    emulation::tile_store(0, sum, 64);
    EXPECT_EQ(sum[0][0], 0.0f);
    EXPECT_EQ(sum[1][1], 0.0f);
    EXPECT_EQ(sum[2][0], 0.0f);
    EXPECT_EQ(sum[1][0], 2.0f);  // 2^-126 * 2^127
}

TEST_F(AmxEmulation, Bf16IsRoundedToEven) {
    const auto round = [](std::uint32_t bits) {
        float x;
        std::memcpy(&x, &bits, sizeof x);
        const __m512i pair = _mm512_cvtne2ps_pbh(_mm512_set1_ps(2.0f), _mm512_set1_ps(x));
        std::uint16_t out[32];
        std::memcpy(out, &pair, sizeof out);
        EXPECT_EQ(out[16], 0x4000);
        return out[15];
    };
    EXPECT_EQ(round(0x3f808000), 0x3f80);  // between two, to the even one
    EXPECT_EQ(round(0x3f818000), 0x3f82);
    EXPECT_EQ(round(0x3f808001), 0x3f81);
    EXPECT_EQ(round(0xbf817fff), 0xbf81);
    EXPECT_EQ(round(0x7f7fffff), 0x7f80);
    EXPECT_EQ(round(0x7f800001), 0x7fc0);
    EXPECT_EQ(round(0x807fffff), 0x8000);
}

using AmxEmulationDeathTest = AmxEmulation;

TEST_F(AmxEmulationDeathTest, FaultsWhereHardwareDoes) {
    ::testing::GTEST_FLAG(death_test_style) = "threadsafe";
    static std::uint8_t memory[1024];
    const auto load = [](void (*change)(TileConfig&)) {
        const TileConfig c = with(change);
        emulation::tile_load_config(&c);
    };
    EXPECT_DEATH(emulation::tile_zero(0), "AMX fault: tilezero: tiles are not configured");
    EXPECT_DEATH(emulation::tile_load(0, memory, 64), "AMX fault: tileloadd: tiles are not configured");
    EXPECT_DEATH(load([](TileConfig& c) { c.palette = 2; }), "no such palette");
    EXPECT_DEATH(load([](TileConfig& c) { c.reserved0[13] = 1; }), "reserved");
    EXPECT_DEATH(load([](TileConfig& c) { c.reserved1[0] = 1; }), "reserved");
    EXPECT_DEATH(load([](TileConfig& c) { c.reserved2[7] = 1; }), "reserved");
    EXPECT_DEATH(load([](TileConfig& c) { c.rows[3] = 17; }), "too large");
    EXPECT_DEATH(load([](TileConfig& c) { c.row_bytes[7] = 65; }), "too large");
    EXPECT_DEATH(load([](TileConfig& c) { c.row_bytes[2] = 0; }), "rows without columns");
    EXPECT_DEATH((load([](TileConfig& c) { c.rows[5] = 0, c.row_bytes[5] = 0; }), emulation::tile_zero(5)),
                 "this tile is not configured");
    emulation::tile_load_config(&kWholeTiles);
    EXPECT_DEATH(emulation::tile_dpbssd(0, 1, 1), "the same tile twice");
    EXPECT_DEATH(emulation::tile_dpbssd(0, 0, 1), "the same tile twice");
    EXPECT_DEATH((load([](TileConfig& c) { c.rows[1] = 8; }), emulation::tile_dpbssd(0, 1, 2)),
                 "differ in rows");
    EXPECT_DEATH((load([](TileConfig& c) { c.rows[2] = 8; }), emulation::tile_dpbf16ps(0, 1, 2)),
                 "summed lengths differ");
    EXPECT_DEATH((load([](TileConfig& c) { c.row_bytes[2] = 32; }), emulation::tile_dpbf16ps(0, 1, 2)),
                 "differ in columns");
    EXPECT_DEATH((load([](TileConfig& c) { c.row_bytes[0] = 62; }), emulation::tile_dpbssd(0, 1, 2)),
                 "multiple of 4");
}

}  // namespace
}  // namespace mixed_kv::testing
