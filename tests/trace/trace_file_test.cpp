#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "mixed_kv/error.h"
#include "trace/trace_reader.h"
#include "trace/trace_schema.h"
#include "trace/trace_writer.h"
#include "trace_test_support.h"

namespace mixed_kv::trace::testing {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

TEST(TraceNames, FormatAndParse) {
    EXPECT_EQ(tensor_name("k_quant", 31, 9999), "k_quant-31_step_9999");
    EXPECT_LE(tensor_name("v_page_ids", INT32_MAX, INT32_MAX).size(), kMaxTensorName);
    const auto parsed = parse_tensor_name("k_quant-31_step_9999");
    ASSERT_TRUE(parsed);
    EXPECT_EQ(parsed->kind, "k_quant");
    EXPECT_EQ(parsed->layer, 31);
    EXPECT_EQ(parsed->step, 9999);
    for (const char* wrong :
         {"", "q", "q-1", "q-1_step_", "-1_step_2", "q-_step_2", "q--1_step_2", "q-1_step_-2", "q-01_step_2",
          "q-1_step_2 ", "q-1_step_99999999999", "q-1step_2", "q-a_step_2"}) {
        EXPECT_FALSE(parse_tensor_name(wrong)) << wrong;
    }
}

TEST(TraceViews, AxisOrder) {
    EXPECT_EQ(axis_order({64, 256, 8, 1}, {2, 1024, 128, 262144}), (Shape{0, 2, 1, 3}));
    EXPECT_EQ(axis_order({256, 64, 8, 1}, {2, 512, 32768, 262144}), (Shape{0, 1, 2, 3}));
    EXPECT_EQ(axis_order({64, 256, 8, 2}, {512, 2, 32768, 262144}), (Shape{1, 0, 2, 3}));  // transposed V
    EXPECT_EQ(axis_order({64, 1, 8, 1}, {4, 4, 256, 2048}), (Shape{0, 2, 1, 3}));
}

// --- round trips

struct Variant {
    const char* name;
    SampleShape shape;
};

const Variant kVariants[] = {
    {"mixed", {}},
    {"mixed_all_hot", {.n_used = 20}},
    {"mixed_prompt", {.n_tokens = 33, .n_used = 300}},
    {"mixed_sinks", {.with_sinks = true}},
    {"standard", {.cache = CacheKind::standard}},
    {"standard_no_mask", {.cache = CacheKind::standard, .n_used = 256, .with_mask = false}},
    {"standard_prompt",
     {.cache = CacheKind::standard, .n_tokens = 7, .n_head = 6, .n_head_kv = 1, .head_dim = 80}},
};

class TraceRoundTrip : public ::testing::TestWithParam<std::tuple<Variant, TraceForm>> {};

TEST_P(TraceRoundTrip, KeepsEverything) {
    const auto& [variant, form] = GetParam();
    const TempFolder folder;
    const auto path = folder / "trace.gguf";
    std::vector<TraceRecord> written;
    TraceWriter writer(path, {.form = form, .expected_records = 6});
    writer.set_info("model", "a model");
    SampleShape shape = variant.shape;
    for (int step = 0; step < 3; ++step) {
        for (const int layer : {0, 1, 5}) {
            written.push_back(sample_record(layer, step, shape));
            writer.append(written.back());
        }
        shape.n_used += shape.with_mask ? shape.n_tokens : 0;
    }
    EXPECT_EQ(writer.n_records(), written.size());
    writer.finish();

    const TraceReader trace(path);
    EXPECT_EQ(trace.form(), form);
    EXPECT_THAT(trace.info(), ElementsAre(std::pair<std::string, std::string>("model", "a model")));
    ASSERT_EQ(trace.records().size(), written.size());
    for (size_t i = 0; i < written.size(); ++i) {
        expect_equal(written[i], trace.load(trace.records()[i]));
    }
}

INSTANTIATE_TEST_SUITE_P(Variants, TraceRoundTrip,
                         ::testing::Combine(::testing::ValuesIn(kVariants),
                                            ::testing::Values(TraceForm::self_contained, TraceForm::compact)),
                         [](const auto& test) {
                             const bool compact = std::get<1>(test.param) == TraceForm::compact;
                             return std::string(std::get<0>(test.param).name) + (compact ? "_compact" : "");
                         });

TEST(TraceFile, ListsAtLeastSixInputsPerMixedStep) {
    const TempFolder folder;
    TraceWriter writer(folder / "t.gguf");
    writer.append(sample_record(0, 0, {.n_used = 5}));  // nothing is cold yet
    writer.finish();
    const TraceReader trace(folder / "t.gguf");
    std::vector<std::string> names;
    for (const GgufTensor& tensor : trace.tensors({0, 0})) {
        names.emplace_back(tensor.name);
    }
    EXPECT_THAT(names, ElementsAre("kqv_out-0_step_0", "q-0_step_0", "k-0_step_0", "k_rows-0_step_0",
                                   "k_sums-0_step_0", "k_quant-0_step_0", "k_pages-0_step_0",
                                   "k_page_sums-0_step_0", "v-0_step_0", "v_rows-0_step_0", "v_sums-0_step_0",
                                   "v_quant-0_step_0", "v_pages-0_step_0", "v_page_sums-0_step_0",
                                   "mask-0_step_0", "meta-0_step_0", "scalars-0_step_0", "sums-0_step_0"));
    EXPECT_EQ(trace.gguf().require_tensor("k_quant-0_step_0").ne, (Shape{128, 2, 0, 1}));
}

TEST(TraceFile, WithoutSources) {
    for (const TraceForm form : {TraceForm::self_contained, TraceForm::compact}) {
        const TempFolder folder;
        TraceRecord record = sample_record(0, 0);
        record.has_sources = false;
        record.q_view = record.k_view = record.v_view = {};
        TraceWriter writer(folder / "t.gguf", {.form = form});
        writer.append(record);
        writer.finish();
        const TraceReader trace(folder / "t.gguf");
        EXPECT_EQ(trace.tensors({0, 0}).size(), 4u);  // kqv_out, meta, scalars, sums
        const TraceRecord loaded = trace.load({0, 0});
        expect_equal(record, loaded);
        EXPECT_TRUE(loaded.k.cells.empty());
    }
}

TEST(TraceFile, ValuesThatAreAViewOfKeys) {
    for (const TraceForm form : {TraceForm::self_contained, TraceForm::compact}) {
        const TempFolder folder;
        TraceRecord record = sample_record(0, 0, {.head_dim = 36});
        record.v_is_view_of_k = true;
        record.v = {};
        record.head_dim_v = 32;
        record.v_view = record.k_view;
        record.v_view.ne[0] = 32;
        record.kqv_out = {GgmlType::f32, {32, record.n_head, 1, 1}, std::vector<std::byte>(32 * 4 * 4)};
        TraceWriter writer(folder / "t.gguf", {.form = form});
        writer.append(record);
        writer.finish();
        expect_equal(record, TraceReader(folder / "t.gguf").load({0, 0}));
    }
}

TEST(TraceFile, SeveralStreamsAndFiniteMask) {
    const TempFolder folder;
    TraceRecord r = sample_record(0, 0, {.cache = CacheKind::standard, .n_used = 256});
    r.n_stream = 2;
    r.max_bias = 8.0f;
    const auto twice = [](TensorData& tensor, int dim) {
        const std::vector<std::byte> copy = tensor.bytes;
        tensor.bytes.insert(tensor.bytes.end(), copy.begin(), copy.end());
        tensor.ne[static_cast<size_t>(dim)] *= 2;
    };
    twice(r.q, 3);
    twice(r.kqv_out, 3);
    twice(*r.mask, 3);
    r.q_view = r.k_view = r.v_view = {};
    for (CachePart* part : {&r.k, &r.v}) {
        twice(part->rows, 2);
        for (int cell = 256; cell < 512; ++cell) {
            part->cells.push_back(cell);
        }
    }
    TraceWriter writer(folder / "t.gguf");
    writer.append(r);
    writer.finish();
    expect_equal(r, TraceReader(folder / "t.gguf").load({0, 0}));
}

TEST(TraceFile, CompactStoresEveryVersionOnce) {
    const TempFolder folder;
    const auto path = folder / "t.gguf";
    TraceRecord first = sample_record(0, 0);
    TraceRecord second = sample_record(0, 1);  // same rows and pages
    TraceRecord third = sample_record(0, 2);
    third.k.rows.bytes[5 * 128] ^= std::byte{1};   // row 5 was rewritten
    third.v.codes.bytes[128 * 2] ^= std::byte{1};  // page 1 was encoded again
    TraceRecord fourth = sample_record(0, 3);      // and both are back
    TraceWriter writer(path, {.form = TraceForm::compact});
    for (const TraceRecord* record : {&first, &second, &third, &fourth}) {
        writer.append(*record);
    }
    writer.finish();
    const TraceReader trace(path);
    EXPECT_FALSE(trace.gguf().find_tensor("k-0_step_1"));
    EXPECT_FALSE(trace.gguf().find_tensor("v_quant-0_step_1"));
    EXPECT_EQ(trace.gguf().require_tensor("k-0_step_2").ne[2], 1);
    EXPECT_EQ(trace.gguf().require_tensor("v_quant-0_step_2").ne[2], 1);
    EXPECT_FALSE(trace.gguf().find_tensor("v-0_step_2"));
    expect_equal(first, trace.load({0, 0}));
    expect_equal(second, trace.load({0, 1}));
    expect_equal(third, trace.load({0, 2}));
    expect_equal(fourth, trace.load({0, 3}));
}

TEST(TraceFile, RefusesRecordsOutOfOrderAndGoesOn) {
    const TempFolder folder;
    for (const TraceForm form : {TraceForm::self_contained, TraceForm::compact}) {
        TraceWriter writer(folder / "t.gguf", {.form = form});
        writer.append(sample_record(3, 5));
        for (const auto& [layer, step] : {std::pair(3, 5), std::pair(2, 5), std::pair(4, 4)}) {
            EXPECT_THAT(error_of([&, l = layer, s = step] { writer.append(sample_record(l, s)); }),
                        HasSubstr("comes after layer 3, step 5"));
        }
        TraceRecord wrong = sample_record(4, 5);
        wrong.q.bytes.pop_back();
        EXPECT_THAT(error_of([&] { writer.append(wrong); }), HasSubstr("layer 4, step 5, q"));
        writer.append(sample_record(0, 6));
        writer.finish();
        EXPECT_EQ(TraceReader(folder / "t.gguf").records().size(), 2u);
    }
}

TEST(TraceFile, EstimateIsCloseAndNotTooLow) {
    for (const CacheKind cache : {CacheKind::standard, CacheKind::mixed}) {
        for (const TraceForm form : {TraceForm::self_contained, TraceForm::compact}) {
            const bool mixed = cache == CacheKind::mixed;
            TraceEstimate estimate{.form = form,
                                   .n_layers = 2,
                                   .n_prompt = 200,
                                   .n_ubatch = 50,
                                   .n_decode = 40,
                                   .n_head = 8,
                                   .n_head_kv = 4,
                                   .head_dim_k = 128,
                                   .head_dim_v = 128};
            if (mixed) {
                estimate.hot_rows = 104;
                estimate.cold_bytes_per_value = 128.0 / (64 * 128);  // the sample's block
            }
            const TempFolder folder;
            TraceWriter writer(folder / "t.gguf",
                               {.form = form,
                                .expected_bytes = estimate.bytes(),
                                .expected_records = static_cast<uint64_t>(estimate.n_records())});
            SampleShape shape{
                .cache = cache, .n_head = 8, .n_head_kv = 4, .head_dim = 128, .n_used = 0, .hot_rows = 40};
            for (int step = 0; step < 44; ++step) {
                shape.n_tokens = step < 4 ? 50 : 1;
                shape.position = shape.n_used;
                shape.n_used += shape.n_tokens;
                for (int layer = 0; layer < 2; ++layer) {
                    writer.append(sample_record(layer, step, shape));
                }
            }
            EXPECT_EQ(static_cast<int64_t>(writer.n_records()), estimate.n_records());
            writer.finish();
            const auto real = static_cast<double>(std::filesystem::file_size(folder / "t.gguf"));
            EXPECT_GE(static_cast<double>(estimate.bytes()), real)
                << "mixed " << mixed << ", form " << static_cast<int>(form);
            EXPECT_LE(static_cast<double>(estimate.bytes()), 1.5 * real + 65536)
                << "mixed " << mixed << ", form " << static_cast<int>(form);
        }
    }
}

TEST(TraceFile, LocatesCells) {
    const TraceRecord r =
        sample_record(0, 0);  // 200 cells: pages 0 and 1 cold, but for cells 0 and 1; exact from 128
    const std::vector<CellPlace> places = locate_cells(r, r.k);
    ASSERT_EQ(places.size(), 256u);
    EXPECT_EQ(places[1].where, CellPlace::Where::row);
    EXPECT_EQ(places[1].index, 1);
    EXPECT_EQ(places[66].where, CellPlace::Where::page);
    EXPECT_EQ(places[66].index, 1);
    EXPECT_EQ(places[66].token, 2);
    EXPECT_EQ(places[128].where, CellPlace::Where::row);
    EXPECT_EQ(places[200].where, CellPlace::Where::nowhere);
}

}  // namespace
}  // namespace mixed_kv::trace::testing
