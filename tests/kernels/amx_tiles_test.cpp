// The tiles belong to the host's thread: ggml-cpu configures them once per thread and finds them so after our
// kernels. Compiled twice, for the real set and for the one over the emulation.

#include "kernels/amx/tiles.h"

#include <algorithm>
#include <cstring>

#include "kernels/kernel_test_support.h"

namespace mixed_kv::testing {
namespace {

using kernels::amx::kWholeTiles;
using kernels::amx::TileConfig;

#if defined(MIXED_KV_AVX512_EMULATED)
constexpr const char* kIsa = "amx_emulated";
#else
constexpr const char* kIsa = "amx";
#endif

class AmxTiles : public ::testing::Test {
  protected:
    void SetUp() override {
        if (!is_supported(kIsa)) {
            GTEST_SKIP() << "this CPU cannot run " << kIsa;
        }
        kernels::amx::release();
        set_ = &kernel_set(kIsa);
    }
    void TearDown() override {
        if (set_ != nullptr) kernels::amx::release();
    }
    // Every kernel that works on tiles, on enough rows that it does.
    void run_kernels() const;

    const kernels::KernelSet* set_ = nullptr;
};

void AmxTiles::run_kernels() const {
    std::mt19937 rng(73);
    constexpr int kDim = 64, kRows = 24;
    const auto rows = make_rows(RowData::gaussian, kDim, rng);
    const kernels::PageData hot{reinterpret_cast<const std::byte*>(rows.data()), kDim * 2, kPageTokens, kDim};
    const Guarded<float> q(kRows * kDim), p(kRows * kPageTokens), o(kRows * kDim);
    const Guarded<std::byte> scratch(set_->scratch_bytes(kDim));
    fill_queries(q.data(), kRows, kDim, kDim, 1.0f, rng);
    fill_weights(p.data(), kRows, kPageTokens, rng);
    std::fill(o.span().begin(), o.span().end(), 0.0f);
    std::vector<float> scores(kRows * kPageTokens);
    int index = 0;
    for (const ColdFormat& format : cold_formats()) {
        const EncodedPage keys(format, KvRole::key, kDim, rows), values(format, KvRole::value, kDim, rows);
        set_->formats[index].qk({keys.page(), q.data(), kDim, kRows, scores.data(), scratch.data()});
        set_->formats[index].pv({values.page(), p.data(), kRows, o.data(), kDim, scratch.data()});
        ++index;
    }
    set_->qk_f16({hot, q.data(), kDim, kRows, scores.data(), scratch.data()});
    set_->pv_f16({hot, p.data(), kRows, o.data(), kDim, scratch.data()});
    set_->gemm({q.data(), kDim, p.data(), kPageTokens, o.data(), kDim, kRows, kPageTokens, kRows, false});
}

TEST_F(AmxTiles, AreReleasedWhereTheyWere) {
    run_kernels();
    TileConfig after, released{};
    kernels::amx::store_config(after);
    EXPECT_EQ(std::memcmp(&after, &released, sizeof released), 0);
}

TEST_F(AmxTiles, KeepTheHostsConfiguration) {
    TileConfig hosts = kWholeTiles, after;
    hosts.rows[0] = 8, hosts.row_bytes[1] = 32, hosts.rows[7] = 1;
    kernels::amx::load_config(hosts);
    run_kernels();
    kernels::amx::store_config(after);
    EXPECT_EQ(std::memcmp(&after, &hosts, sizeof hosts), 0);
}

// A product of the host's own between two of our calls: shapes and operands are those it configured.
TEST_F(AmxTiles, ServeTheHostsProductsAfterwards) {
    TileConfig hosts = kWholeTiles;
    hosts.rows[0] = hosts.rows[1] = 8;
    kernels::amx::load_config(hosts);
    run_kernels();
    alignas(64) std::int8_t a[8][64], b[16][64];
    alignas(64) std::int32_t sum[8][16];
    std::mt19937 rng(74);
    for (std::int8_t& x : std::span(&a[0][0], sizeof a)) x = static_cast<std::int8_t>(rng());
    for (std::int8_t& x : std::span(&b[0][0], sizeof b)) x = static_cast<std::int8_t>(rng());
    kernels::amx::zero<0>();
    kernels::amx::load<1>(a, 64);
    kernels::amx::load<2>(b, 64);
    kernels::amx::multiply_int8<0, 1, 2>();
    kernels::amx::store<0>(sum, 64);
    for (int m = 0; m < 8; ++m) {
        for (int n = 0; n < 16; ++n) {
            std::int32_t want = 0;
            for (int k = 0; k < 64; ++k) want += a[m][k] * b[k / 4][4 * n + k % 4];
            ASSERT_EQ(sum[m][n], want) << "row " << m << ", column " << n;
        }
    }
}

}  // namespace
}  // namespace mixed_kv::testing
