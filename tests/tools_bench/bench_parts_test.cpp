// The parts of mixed-kv-bench that can be wrong without anybody noticing: what it verifies, and its figures.
#include <gtest/gtest.h>

#include <cmath>
#include <stdexcept>

#include "mixed-kv-bench/attention_bench.h"
#include "mixed-kv-bench/compute_peak.h"
#include "mixed-kv-bench/plot.h"
#include "mixed-kv-bench/read_bandwidth.h"
#include "mixed-kv-bench/verify.h"

namespace mixed_kv::tools {

namespace {

TEST(Statistics, MedianAndQuartiles) {
    const Spread odd = spread_of({5, 1, 4, 2, 3});
    EXPECT_DOUBLE_EQ(odd.median, 3);
    EXPECT_DOUBLE_EQ(odd.q1, 2);
    EXPECT_DOUBLE_EQ(odd.q3, 4);
    EXPECT_EQ(odd.n, 5U);
    EXPECT_DOUBLE_EQ(spread_of({4, 1, 3, 2}).median, 2.5);
    EXPECT_EQ(spread_of({}).n, 0U);
}

TEST(Bandwidth, BestGroupCounts) {
    ReadBandwidth bandwidth(std::size_t(16) << 20, 1);
    bandwidth.choose_pattern(3);
    const double first = bandwidth.bytes_per_second();
    EXPECT_GT(first, 1e8);
    EXPECT_LT(first, 1e13);
    bandwidth.next_group();
    for (int i = 0; i < 3; ++i) bandwidth.sample(std::size_t(4) << 20);
    EXPECT_GE(bandwidth.bytes_per_second(), first);
    EXPECT_EQ(bandwidth.n_samples(), 6U);
}

TEST(Peak, UnknownUnitIsRefused) {
    EXPECT_GT(measure_peak("scalar f32", 1).operations_per_second, 1e7);
    EXPECT_THROW(measure_peak("abacus", 1), std::runtime_error);
}

AttentionReport report_with(double us) {
    AttentionReport report;
    report.machine.read_bandwidth = 1e10;
    AttentionCase c;
    c.us = {us, us, us, 5};
    c.kv_bytes = 1'000'000;  // 100 us at 1e10 bytes per second
    report.cases.push_back(c);
    return report;
}

TEST(Share, AboveOneIsAnError) {
    AttentionReport good = report_with(200);
    add_shares(good);
    EXPECT_NEAR(good.cases.front().bandwidth_share, 0.5, 1e-12);
    AttentionReport impossible = report_with(99);
    EXPECT_THROW(add_shares(impossible), std::runtime_error);
    AttentionReport host = report_with(200);
    host.cases.front().host["f16"] = {{10, 10, 10, 5}, 1'000'000, 0};
    EXPECT_THROW(add_shares(host), std::runtime_error);
}

TEST(Operations, OnlyWhatACausalMaskLeaves) {
    AttentionShape shape;
    shape.head_dim = 2;
    shape.n_head = 3;
    shape.n_seq = 5;
    shape.n_q = 4;
    shape.n_kv = 10;  // rows see 7, 8, 9 and 10 cells
    EXPECT_DOUBLE_EQ(shape.useful_operations(), 34.0 * 2 * 2 * 2 * 3 * 5);
}

// The check that every case goes through must see a wrong query, a wrong value row and a wrong mask.
TEST(Verify, SeesWrongResults) {
    HostRuntime runtime(1);
    AttentionShape shape;
    shape.head_dim = 64;
    shape.n_head = 4;
    shape.n_head_kv = 2;
    shape.n_seq = 2;
    shape.n_q = 3;
    shape.n_kv = 200;
    shape.n_hot = 40;
    const AttentionData data(shape);
    AttentionRig rig(runtime, shape, data, {"ours", GGML_TYPE_F16, "k=q4,v=q4,window=0,sinks=0", 1});
    rig.run_next();
    EXPECT_LE(relative_rms(runtime, rig, shape, data), relative_rms_allowed(true));
    mixed_kv_tensor_info info = {};
    ASSERT_EQ(runtime.plugin().api().tensor_info(rig.last_k(), &info), 1);
    EXPECT_GT(info.cold_bytes, 0U) << "nothing was frozen";
    EXPECT_GT(info.hot_bytes, 0U) << "the newest rows were frozen";

    AttentionData other = data;
    for (float& x : other.q) x *= 1.01f;
    EXPECT_GT(relative_rms(runtime, rig, shape, other), relative_rms_allowed(true));
    other = data;
    other.mask[0] = 0xfc00;  // one cell more is hidden from the first query
    EXPECT_GT(relative_rms(runtime, rig, shape, other), relative_rms_allowed(true));
    EXPECT_LT(relative_rms_allowed(false), relative_rms_allowed(true));
}

TEST(Rotation, EveryCacheGivesTheSame) {
    HostRuntime runtime(1);
    AttentionShape shape;
    shape.head_dim = 64;
    shape.n_head = 2;
    shape.n_head_kv = 1;
    shape.n_kv = 128;
    const AttentionData data(shape);
    for (const char* settings : {"k=q4,v=q4,window=0,sinks=0", ""}) {
        AttentionRig rig(runtime, shape, data, {"x", GGML_TYPE_F16, settings, std::size_t(100) << 10});
        ASSERT_GE(rig.n_caches(), 3);
        rig.run_next();
        const std::vector<float> first(rig.output(), rig.output() + 128);
        ggml_tensor* k = rig.last_k();
        rig.run_next();
        EXPECT_NE(rig.last_k(), k);
        EXPECT_EQ(std::vector<float>(rig.output(), rig.output() + 128), first);
    }
}

TEST(Plot, HoldsEveryLineAndDepth) {
    ModelReport report;
    report.description = "a <model>";
    for (const int depth : {0, 4096}) {
        ModelCase c;
        c.depth = depth;
        c.k = c.v = "q4";
        c.tokens_per_second = {20, 19, 21, 5};
        c.host["f16"] = {7, 6, 8, 5};
        report.cases.push_back(c);
    }
    const std::string svg = plot_svg(report);
    EXPECT_EQ(svg.rfind("<svg", 0), 0U);
    EXPECT_NE(svg.find("mixed q4/q4"), std::string::npos);
    EXPECT_NE(svg.find("llama.cpp f16"), std::string::npos);
    EXPECT_EQ(svg.find("q8_0"), std::string::npos);
    EXPECT_NE(svg.find(">4096<"), std::string::npos);
    EXPECT_NE(svg.find("a &lt;model>"), std::string::npos);
}

}  // namespace

}  // namespace mixed_kv::tools
