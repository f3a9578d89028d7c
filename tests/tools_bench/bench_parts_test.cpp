// The parts of mixed-kv-bench that can be wrong without anybody noticing: what it verifies, and its figures.
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <stdexcept>

#include "command.h"
#include "mixed-kv-bench/attention_bench.h"
#include "mixed-kv-bench/compute_peak.h"
#include "mixed-kv-bench/model_contexts.h"
#include "mixed-kv-bench/plot.h"
#include "mixed-kv-bench/read_bandwidth.h"
#include "mixed-kv-bench/report.h"
#include "mixed-kv-bench/report_parts.h"
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

TEST(Peak, UnitsOfACase) {
    AttentionShape shape;
    shape.n_head = 32;
    shape.n_head_kv = 8;
    shape.n_kv = 1024;
    using Units = std::map<std::string, double>;
    EXPECT_EQ(units_used("avx2", shape, "q4", "q8"), (Units{{"vpmaddwd int16 avx2", 1}}));
    EXPECT_EQ(units_used("avx2", shape, "f16", "q4"),
              (Units{{"fma f32 avx2", 0.5}, {"vpmaddwd int16 avx2", 0.5}}));
    shape.n_hot = 256;  // the only query sees all rows
    EXPECT_EQ(units_used("avx512", shape, "q4", "q4"),
              (Units{{"fma f32 avx512", 0.25}, {"2 x vpdpbusd int8 avx512", 0.75}}));
    EXPECT_EQ(units_used("avxvnni", shape, "q4", "q4"),
              (Units{{"fma f32 avx2", 0.25}, {"vpdpwssd int16 avxvnni", 0.75}}));
    EXPECT_EQ(units_used("i8mm", shape, "q4", "q4"),
              (Units{{"fma f32 neon", 0.25}, {"2 x usmmla int8", 0.75}}));
    EXPECT_EQ(units_used("scalar", shape, "q4", "q4"), (Units{{"scalar f32", 1}}));
    // AMX: cold pages from 9 query rows on, FP16 pages from 28.
    shape.n_q = 3;
    EXPECT_EQ(units_used("amx", shape, "q4", "q4").count("2 x tdpbssd int8 amx"), 1U);
    EXPECT_EQ(units_used("amx", shape, "q4", "q4").count("fma f32 avx512"), 1U);
    shape.n_q = 8;
    EXPECT_EQ(units_used("amx", shape, "q4", "q4").count("3 x tdpbf16ps amx"), 1U);
    // A prompt from an empty cache is hot as a whole; behind as many cold rows a third is: each query sees
    // all cold rows, and half of its own ubatch.
    shape.n_q = shape.n_kv = shape.n_hot = 512;
    EXPECT_EQ(units_used("avx2", shape, "q4", "q4"), (Units{{"fma f32 avx2", 1}}));
    shape.n_kv = 1024;
    EXPECT_NEAR(units_used("avx2", shape, "q4", "q4").at("fma f32 avx2"), 1.0 / 3, 1e-3);
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

// What the host's time rests on: the fastest memory that its caches were tried in.
TEST(Placements, TheFastestCounts) {
    EXPECT_EQ(fastest({3, 1, 2}), 1U);
    EXPECT_EQ(fastest({3}), 0U);
    HostRuntime runtime(1);
    AttentionShape shape;
    shape.head_dim = 64;
    shape.n_head = 2;
    shape.n_head_kv = 1;
    shape.n_kv = 128;
    const AttentionData data(shape);
    // Huge pages or not: the same results.
    std::vector<float> outputs[2];
    for (const bool huge : {false, true}) {
        AttentionRig rig(runtime, shape, data, {"f16", GGML_TYPE_F16, "", std::size_t(4) << 20, huge});
        rig.run_next();
        outputs[huge].assign(rig.output(), rig.output() + 128);
    }
    EXPECT_EQ(outputs[0], outputs[1]);
}

TEST(Placements, TheReportSaysWhatWasTried) {
    AttentionReport report = report_with(200);
    AttentionCase& c = report.cases.front();
    c.peak_gflops = 1;
    c.host["f16"] = {{1000, 1000, 1000, 5}, 1'000'000, 0, {4000, 1000, 1100}};
    EXPECT_NE(
        to_table(report, false).find("3 placements, the fastest counts; the slowest took 4.00 x (f16)."),
        std::string::npos)
        << to_table(report, false);
    EXPECT_EQ(to_json(report)["cases"][0]["host_placements_us"]["f16"].dump(), "[4000.0,1000.0,1100.0]");
    c.host["f16"].placements = {1000};
    EXPECT_EQ(to_table(report, false).find("placements"), std::string::npos);
}

TEST(Machine, LastLevelCacheWithoutSysfs) {
    const std::size_t listed = last_level_cache_bytes(), asked = last_level_cache_bytes("/nonexistent");
    if (sysconf(_SC_LEVEL2_CACHE_SIZE) > 0) {
        EXPECT_GT(asked, 0U);
    }
    if (listed != 0 && asked != 0) {
        EXPECT_EQ(asked, listed);
    }
}

// A small model runs from the CPU's caches: reading memory is no ceiling for it, and a share of it no share.
TEST(Ceiling, WhatFitsACacheSaysSo) {
    ModelReport report;
    ModelCase c;
    c.tokens_per_second = {128, 128, 128, 5};
    c.tokens_per_second_ceiling = 100;
    c.fits_cache = true;
    report.cases = {c};
    EXPECT_NE(to_table(report, false).find("fits a cache"), std::string::npos);
    EXPECT_EQ(to_table(report, false).find("128 %"), std::string::npos);
    EXPECT_EQ(to_json(report)["cases"][0]["fits_cache"], true);
    report.cases[0].fits_cache = false;
    report.cases[0].tokens_per_second = {50, 50, 50, 5};
    EXPECT_NE(to_table(report, false).find("50 %"), std::string::npos);
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

TEST(Summary, NamesTheCaseThatGainsLeast) {
    std::vector<ModelCase> cases(3);
    const double rates[] = {20, 12, 30};
    for (std::size_t i = 0; i < cases.size(); ++i) {
        cases[i].depth = std::int64_t(i) * 100;
        cases[i].tokens_per_second = {rates[i], rates[i], rates[i], 5};
        cases[i].host["f16"] = {10, 10, 10, 5};
        cases[i].host["q4_0"] = {i == 2 ? 60.0 : 1.0, 1, 1, 5};
    }
    EXPECT_EQ(smallest_speedup_json(cases).dump(),
              R"({"f16":{"speedup":1.2,"case":1},"q4_0":{"speedup":0.5,"case":2}})");
    const auto place = [](const ModelCase& c) { return "depth " + std::to_string(c.depth); };
    EXPECT_EQ(smallest_speedup_line(cases, place),
              "Smallest speed-up: 1.20 x f16 at depth 100; 0.50 x q4_0 at depth 200.\n");
    cases.resize(1);
    EXPECT_EQ(smallest_speedup_line(cases, place), "");
}

TEST(Text, BytesThatAreNoUtf8AreReplaced) {
    PromptReport report;
    report.ours.text = "\xff";
    EXPECT_NE(dumped(to_json(report), 2).find("\"text\": \"\xef\xbf\xbd\""), std::string::npos);
}

TEST(Text, HostsByType) {
    AttentionCase c;
    c.us = {10, 10, 10, 5};
    c.host["f16"] = {{30, 20, 40, 5}, 0, 0};
    Json json;
    add_host(json, c, &HostTime::us);
    EXPECT_EQ(json.dump(),
              R"({"host":{"f16":30.0},"host_quartiles":{"f16":[20.0,40.0]},"speedup":{"f16":3.0}})");
}

TEST(Memory, ContextsAndStatesThatDoNotFitAreRefused) {
    BenchArguments arguments;
    arguments.model = test::random_model();
    arguments.k = arguments.v = {"q4"};
    arguments.isa = "scalar";
    const ModelPair models(arguments);
    const std::int64_t many = std::int64_t(1) << 40;
    EXPECT_NO_THROW(models.check_memory(arguments, 256, 256));
    EXPECT_THROW(models.check_memory(arguments, many, 0), std::runtime_error);
    EXPECT_THROW(models.check_memory(arguments, 256, many), std::runtime_error);
}

TEST(Summary, CountsUbatchesThatAreSlower) {
    PromptReport report;
    for (const double host : {2.0, 0.9, 0.5}) {
        PromptUbatch u;
        u.seconds = {1, 1, 1, 3};
        u.host["f16"] = {host, host, host, 3};
        u.host["q4_0"] = {2, 2, 2, 3};
        report.ubatches.push_back(u);
    }
    report.ours.prompt_seconds = {3, 3, 3, 3};
    report.host["f16"].prompt_seconds = {6, 6, 6, 3};
    report.host["q4_0"].prompt_seconds = {6, 6, 6, 3};
    const std::string table = to_table(report, false);
    EXPECT_NE(table.find("2.00 x; 2 ubatches are slower than with the host's f16."), std::string::npos)
        << table;
    EXPECT_NE(table.find("no ubatch is slower than with the host's q4_0."), std::string::npos) << table;
}

TEST(Plot, HoldsEveryUbatch) {
    PromptReport report;
    report.k = report.v = "q4";
    for (int i = 0; i < 64; ++i) {
        PromptUbatch u;
        u.depth = i * 512;
        u.n_tokens = 512;
        u.seconds = {0.5, 0.4, 0.6, 3};
        u.host["f16"] = {1, 1, 1, 3};
        report.ubatches.push_back(u);
    }
    const std::string svg = plot_svg(report);
    EXPECT_NE(svg.find("mixed q4/q4 at 32256: 1024.00 tokens/s (853.33 to 1280.00)"), std::string::npos);
    EXPECT_NE(svg.find("llama.cpp f16 at 0: 512.00 tokens/s"), std::string::npos);
    EXPECT_EQ(svg.find(">512<"), std::string::npos) << "labels of all 64 ubatches do not fit";
    EXPECT_NE(svg.find(">3072<"), std::string::npos);
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
