// The sizing model of mixed-kv-doctor --plan, against figures worked out by hand.
#include "mixed-kv-doctor/plan/sizing.h"

#include <gtest/gtest.h>

#include "mixed_kv/cold_format.h"

namespace mixed_kv::tools {

namespace {

constexpr double kMiB = 1024.0 * 1024.0;

Settings settings_with(const char* variable = "", const char* value = "") {
    return Settings::from_environment([&](const char* name) {
        return std::string(name) == variable ? std::optional<std::string>(value) : std::nullopt;
    });
}

// n layers of 100 MiB with 8 heads of 64, and an output of 50 MiB.
ModelShape model_of(int n) {
    ModelShape model;
    model.layers.assign(std::size_t(n), {100 * kMiB, 0, 8, 64, 64});
    model.output_weights = 50 * kMiB;
    model.n_embd = 1000;
    model.n_vocab = 10000;
    return model;
}

Machine machine_of(const char* name, double memory_mib, double gb_s = 10) {
    return {name, memory_mib, gb_s, 1000, 1};
}

TEST(Sizing, CacheOfALayer) {
    const auto* q4 = find_cold_format("q4");
    ASSERT_NE(q4, nullptr);
    // 64 pages, of which 63 are frozen; 64 rows and 4 sinks in FP16, of 1024 bytes in K and in V.
    const LayerCache cache = layer_cache(model_of(1), 0, settings_with(), 4096);
    EXPECT_EQ(cache.f16, 2 * 4096 * 1024);
    EXPECT_EQ(cache.exact, 2 * (64 + 4) * 1024);
    EXPECT_EQ(cache.cold,
              63.0 * 8 * double(q4->block_bytes(KvRole::key, 64) + q4->block_bytes(KvRole::value, 64)));
    // Exact storage: whole pages, no more.
    const LayerCache exact = layer_cache(model_of(1), 0, settings_with("GGML_MIXED_KV_LAYERS", "0:f16"), 100);
    EXPECT_EQ(exact.total(), 2 * 128 * 1024);
    EXPECT_EQ(layer_cache(model_of(1), 0, settings_with(), 0).total(), 0);
}

TEST(Sizing, ALayerWithoutACacheAndOneWithKeysOnly) {
    ModelShape model = model_of(2);
    model.layers[0].n_head_kv = 0;
    model.layers[1].n_head_kv = 1;
    model.layers[1].head_dim_k = 576;
    model.layers[1].head_dim_v = 0;
    EXPECT_EQ(layer_cache(model, 0, settings_with(), 4096).f16, 0);
    EXPECT_EQ(layer_cache(model, 1, settings_with(), 4096).f16, 4096 * 2 * 576);
}

TEST(Sizing, OneMachineReadsAllOfIt) {
    const std::vector<Machine> machines = {machine_of("a", 4096)};
    const Plan plan = make_plan(model_of(8), settings_with(), {64, 1}, machines, 1);
    ASSERT_TRUE(plan.fits());
    ASSERT_EQ(plan.chains.size(), 1U);
    ASSERT_EQ(plan.chains[0].shares.size(), 1U);
    const Share& share = plan.chains[0].shares[0];
    EXPECT_EQ(share.n_layers, 8);
    EXPECT_TRUE(share.has_output);
    EXPECT_EQ(share.items(), 9);
    EXPECT_EQ(share.weights, 850 * kMiB);
    EXPECT_EQ(share.cache, 8 * 2 * 64 * 1024);
    // Weights at 3/4 and exact rows at 6/10 of 10 GB/s.
    EXPECT_NEAR(share.read_s, (850 * kMiB / 0.75 + share.cache / 0.6) / 1e10, 1e-9);
    // A round trip, and a row in, 10000 logits out and 64 cells of the mask over 1000 Mbit/s.
    EXPECT_NEAR(share.network_s, 1e-3 + 8.0 * (4000 + 40000 + 128) / 1e9, 1e-9);
    EXPECT_NEAR(plan.tokens_per_second(), 1 / (share.read_s + share.network_s), 1e-6);
}

TEST(Sizing, LayersGoOnWhereThereIsRoomAndTheFastestMachineComesFirst) {
    // 12 layers and the output: 1250 MiB, and some 25 MiB of compute buffers on each machine.
    const std::vector<Machine> machines = {machine_of("slow", 2000, 5), machine_of("fast", 700, 20)};
    const Plan plan = make_plan(model_of(12), settings_with(), {64, 1}, machines, 1);
    ASSERT_TRUE(plan.fits());
    const auto& shares = plan.chains[0].shares;
    ASSERT_EQ(shares.size(), 2U);
    EXPECT_EQ(shares[0].machine->name, "fast");
    EXPECT_EQ(shares[0].n_layers, 6);
    EXPECT_FALSE(shares[0].has_output);
    EXPECT_EQ(shares[1].n_layers, 6);
    EXPECT_TRUE(shares[1].has_output);
    for (const Share& share : shares) EXPECT_LE(share.memory(), share.machine->memory_mib * kMiB);
    EXPECT_NEAR(plan.chains[0].step_s(),
                shares[0].read_s + shares[0].network_s + shares[1].read_s + shares[1].network_s, 1e-12);
}

TEST(Sizing, WhatDoesNotFitIsCounted) {
    const std::vector<Machine> machines = {machine_of("a", 350), machine_of("b", 350)};
    const Plan plan = make_plan(model_of(8), settings_with(), {64, 1}, machines, 1);
    EXPECT_FALSE(plan.fits());
    EXPECT_EQ(plan.chains[0].missing_items, 3);  // 3 layers each, of 8 and the output
    EXPECT_EQ(plan.tokens_per_second(), 0);
    EXPECT_EQ(most_sequences(model_of(8), settings_with(), 64, machines, 1), 0);
}

TEST(Sizing, ChainsSideBySideWhereEachHoldsTheModel) {
    const std::vector<Machine> machines = {machine_of("a", 2000), machine_of("b", 2000)};
    const ModelShape model = model_of(8);
    const Load load{4096, 8};
    const Plan one = make_plan(model, settings_with(), load, machines, 1);
    const Plan two = make_plan(model, settings_with(), load, machines, 2);
    ASSERT_TRUE(one.fits());
    ASSERT_TRUE(two.fits());
    EXPECT_EQ(two.chains[0].sequences, 4);
    EXPECT_EQ(two.chains[1].sequences, 4);
    EXPECT_GT(two.tokens_per_second(), one.tokens_per_second());
    EXPECT_EQ(best_plan(model, settings_with(), load, machines).chains.size(), 2U);
    // A single sequence has nothing to be dealt.
    EXPECT_EQ(best_plan(model, settings_with(), {4096, 1}, machines).chains.size(), 1U);
}

TEST(Sizing, MostSequencesIsTheLastThatFits) {
    const std::vector<Machine> machines = {machine_of("a", 1500), machine_of("b", 1500)};
    const ModelShape model = model_of(8);
    for (const int chains : {1, 2}) {
        const int most = most_sequences(model, settings_with(), 4096, machines, chains);
        ASSERT_GT(most, chains);
        EXPECT_TRUE(make_plan(model, settings_with(), {4096, most}, machines, chains).fits());
        EXPECT_FALSE(make_plan(model, settings_with(), {4096, most + 1}, machines, chains).fits());
    }
    // Cold rows leave room for more sequences than exact ones.
    EXPECT_GT(
        most_sequences(model, settings_with(), 4096, machines, 1),
        2 * most_sequences(model, settings_with("GGML_MIXED_KV_LAYERS", "0--1:f16"), 4096, machines, 1));
}

TEST(Sizing, OfManyExpertsAFewAreRead) {
    ModelShape model = model_of(4);
    const std::vector<Machine> machines = {machine_of("a", 4096)};
    const auto read_s = [&](int sequences) {
        return make_plan(model, settings_with(), {64, sequences}, machines, 1).chains[0].shares[0].read_s;
    };
    const double dense = read_s(1);
    for (LayerShape& layer : model.layers) layer.expert_weights = 80 * kMiB;
    model.experts_per_token = 0.125;
    EXPECT_NEAR(dense - read_s(1), 4 * 0.875 * 80 * kMiB / 0.75 / 1e10, 1e-9);
    model.experts_per_token = 1;
    EXPECT_DOUBLE_EQ(read_s(1), dense);
}

}  // namespace

}  // namespace mixed_kv::tools
