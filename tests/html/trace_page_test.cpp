// The numbers that go into a page of a trace.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>

#include "html/bundle.h"
#include "html/packing.h"
#include "kqv-tensor-reader/html/cell_map.h"
#include "kqv-tensor-reader/html/choose_records.h"
#include "kqv-tensor-reader/html/misreadings.h"
#include "kqv-tensor-reader/html/weights.h"
#include "kqv-tensor-reader/quantization.h"

namespace mixed_kv::trace_tools {

namespace {

AttentionData random_data(double max_bias, double softcap, bool sinks) {
    AttentionData d;
    d.n_tokens = 3;
    d.n_head = 6;
    d.n_head_kv = 2;
    d.n_kv = 37;
    d.n_stream = 2;
    d.head_dim_k = 24;
    d.head_dim_v = 16;
    d.kq_scale = 0.3;
    d.max_bias = max_bias;
    d.logit_softcap = softcap;
    std::mt19937 random(11);
    std::normal_distribution<float> normal;
    d.q.resize(size_t(d.n_stream * d.n_tokens * d.n_head * d.head_dim_k));
    d.k.resize(size_t(d.n_stream * d.n_kv * d.n_head_kv * d.head_dim_k));
    d.v.resize(size_t(d.n_stream * d.n_kv * d.n_head_kv * d.head_dim_v));
    for (float& x : d.q) x = normal(random);
    for (double& x : d.k) x = double(normal(random));
    for (double& x : d.v) x = double(normal(random));
    d.mask_streams = 2;
    d.mask_rows = d.n_tokens;
    for (int64_t i = 0; i < d.n_stream * d.n_tokens * d.n_kv; ++i) {
        const int64_t cell = i % d.n_kv, token = i / d.n_kv % d.n_tokens, stream = i / d.n_kv / d.n_tokens;
        const bool seen = cell < 30 + token && !(stream == 1 && token == 2);  // one query sees nothing
        d.mask.push_back(seen ? -float(32 - cell) : -INFINITY);
    }
    if (sinks) d.sinks = {0.5F, -1, 2, 0, 1, 3};
    return d;
}

// The weights are those of the reference: they give its outputs, and add up to 1.
TEST(TracePage, WeightsGiveTheReferencesOutput) {
    for (const double max_bias : {0.0, 8.0}) {
        for (const bool extras : {false, true}) {
            const AttentionData data = random_data(max_bias, extras ? 5.0 : 0.0, extras);
            const std::vector<double> expected = attention_in_double(data).o;
            size_t at = 0;
            for (int64_t stream = 0; stream < data.n_stream; ++stream) {
                for (int64_t token = 0; token < data.n_tokens; ++token) {
                    for (int64_t head = 0; head < data.n_head; ++head) {
                        const QueryWeights weights = attention_weights(data, stream, token, head);
                        double sum = weights.sink;
                        for (const double w : weights.cells) sum += w;
                        const bool blind = stream == 1 && token == 2 && !extras;
                        EXPECT_NEAR(sum, blind ? 0 : 1, 1e-12);
                        for (const double x : weighted_values(data, stream, head, weights)) {
                            EXPECT_NEAR(x, expected[at++], 1e-12) << stream << ' ' << token << ' ' << head;
                        }
                    }
                }
            }
        }
    }
}

trace::SourceView permuted_view(int64_t dim, int64_t cells, int64_t heads) {
    trace::SourceView view;
    view.present = true;
    view.type = trace::GgmlType::f16;
    view.ne = {dim, cells, heads, 1};
    view.nb = {2, 2 * dim * heads, 2 * dim, 2 * dim * heads * cells};
    view.order = trace::axis_order(view.ne, view.nb);
    return view;
}

// Memory [cell][head][dim] read as [head][cell][dim], by a plain loop.
TEST(TracePage, MisreadingIsWhatLiesAtThatPlace) {
    const int64_t dim = 3, cells = 5, heads = 2;
    std::vector<double> memory;
    for (int64_t i = 0; i < dim * cells * heads; ++i) memory.push_back(double(i));
    const trace::SourceView view = permuted_view(dim, cells, heads);
    EXPECT_FALSE(is_contiguous(view));
    const std::vector<double> misread = read_as_contiguous(memory, view);
    ASSERT_EQ(misread.size(), memory.size());
    for (int64_t cell = 0; cell < cells; ++cell) {
        for (int64_t head = 0; head < heads; ++head) {
            for (int64_t d = 0; d < dim; ++d) {
                EXPECT_EQ(misread[size_t((cell * heads + head) * dim + d)],
                          memory[size_t((head * cells + cell) * dim + d)]);
            }
        }
    }
}

TEST(TracePage, AContiguousViewCannotBeMisread) {
    trace::SourceView view = permuted_view(3, 5, 2);
    view.nb = {2, 6, 30, 60};
    EXPECT_TRUE(is_contiguous(view));
    const std::vector<double> values(30, 1.5);
    EXPECT_EQ(read_as_contiguous(values, view), values);
    view = permuted_view(3, 5, 1);  // one head: nothing to permute
    EXPECT_TRUE(is_contiguous(view));
}

TEST(TracePage, ViewsOfAHostileFileAreNotComputedWith) {
    trace::SourceView view = permuted_view(3, 5, 2);
    const int64_t huge = int64_t{1} << 62;
    view.ne = {huge, huge, huge, huge};
    EXPECT_FALSE(is_contiguous(view));
    EXPECT_TRUE(read_as_contiguous(std::vector<double>(30), view).empty());
    view = permuted_view(3, 5, 2);
    view.nb = {0, 0, 0, 0};
    EXPECT_EQ(read_as_contiguous(std::vector<double>(30, 1.0), view), std::vector<double>(30, 0.0));
    view.type = trace::GgmlType::q4_0;
    EXPECT_TRUE(read_as_contiguous(std::vector<double>(30, 1.0), view).empty());
}

trace::TraceRecord mixed_record() {
    trace::TraceRecord r;
    r.cache = trace::CacheKind::mixed;
    r.n_tokens = r.n_head = r.n_head_kv = 1;
    r.n_kv = 130;
    r.head_dim_k = r.head_dim_v = 32;
    r.k.cold = {"q4", 64, 1152, 1};
    // The lower half but cell 70, in two blocks.
    r.k.pages = {{.first_cell = 64, .held = 0x0000ffbf}, {.first_cell = 64, .held = 0xffff0000}};
    for (int32_t cell : {0, 1, 2, 70, 128}) r.k.cells.push_back(cell);
    r.k.rows = {trace::GgmlType::f16, {32, 1, 5, 1}, std::vector<std::byte>(5 * 64)};
    return r;
}

TEST(TracePage, CellsAreMappedToPagesAndTheirParts) {
    const CellMap map = map_cells(mixed_record(), Side::k);
    ASSERT_EQ(map.pages.size(), 3U);
    ASSERT_EQ(map.pages[0].parts.size(), 1U);
    EXPECT_EQ(map.pages[0].parts[0].kind, "kept");  // exact, before cold ones
    EXPECT_EQ(map.pages[0].parts[0].n_cells, 3);
    EXPECT_EQ(map.pages[0].parts[0].bytes, 3 * 64);
    ASSERT_EQ(map.pages[1].parts.size(), 3U);  // in order of their first cells
    EXPECT_EQ(map.pages[1].parts[0].kind, "block");
    EXPECT_EQ(map.pages[1].parts[0].format, "q4");
    EXPECT_EQ(map.pages[1].parts[0].n_cells, 15);
    EXPECT_EQ(map.pages[1].parts[0].bytes, 1152);  // q4: 32 channels of 64 half bytes, and their scales
    EXPECT_EQ(map.pages[1].parts[1].kind, "overlay");
    EXPECT_EQ(map.pages[1].parts[1].n_cells, 1);
    EXPECT_EQ(map.pages[1].parts[2].kind, "block");
    EXPECT_EQ(map.pages[1].parts[2].n_cells, 16);
    EXPECT_EQ(map.pages[2].n_cells, 2);
    ASSERT_EQ(map.pages[2].parts.size(), 1U);
    EXPECT_EQ(map.pages[2].parts[0].kind, "hot");  // behind all cold ones
    EXPECT_EQ(map.parts[2], 1);
    EXPECT_EQ(map.parts[3], 0);
    EXPECT_EQ(map.parts[64], 1);
    EXPECT_EQ(map.parts[70], 2);
    EXPECT_EQ(map.parts[80], 3);
    EXPECT_EQ(map.parts[96], 0);  // not held
    EXPECT_EQ(map.parts[128], 1);
}

Report report_of(int n_steps, const std::vector<int>& failing) {
    Report report;
    for (int step = 0; step < n_steps; ++step) {
        Report::Entry entry;
        entry.check.step = step;
        entry.check.checked = entry.check.pass = true;
        report.records.push_back(entry);
    }
    for (size_t i = 0; i < failing.size(); ++i) {
        RecordCheck& check = report.records[size_t(failing[i])].check;
        check.pass = false;
        check.exact.computed = true;
        check.exact.limit_share = i == 0 ? double(NAN) : double(i);
    }
    return report;
}

TEST(TracePage, WhatFailsComesFirstAndTheRestIsSpread) {
    const std::vector<size_t> order = by_interest(report_of(9, {4, 2, 7}));
    ASSERT_EQ(order.size(), 9U);
    EXPECT_EQ(order[0], 4U);  // NaN is worse than any number
    EXPECT_EQ(order[1], 8U);  // the last step
    EXPECT_EQ(order[2], 7U);
    EXPECT_EQ(order[3], 0U);
    std::vector<size_t> sorted = order;
    std::sort(sorted.begin(), sorted.end());
    for (size_t i = 0; i < sorted.size(); ++i) EXPECT_EQ(sorted[i], i);
}

TEST(TracePage, TablesAreCutToTheWorst) {
    Report report = report_of(9, {4});
    report.originals = "what was written";
    for (size_t i = 0; i < report.records.size(); ++i) {
        report.records[i].check.layer = int32_t(i);
        report.records[i].quantization.v = {
            .n_cells = 1, .squared_error = double(i), .squared_original = 100, .n_values = 1};
    }
    const std::string records = to_table(report, 2), layers = quantization_table(report, 2);
    EXPECT_EQ(std::count(records.begin(), records.end(), '\n'), 4);
    EXPECT_NE(records.find("    4     4"), std::string::npos) << records;  // what fails
    EXPECT_NE(records.find("the 2 largest of 9 records (--all"), std::string::npos) << records;
    EXPECT_EQ(std::count(layers.begin(), layers.end(), '\n'), 5);
    EXPECT_LT(layers.find("\n    8 "), layers.find("\n    7 ")) << layers;
    EXPECT_NE(layers.find("the 2 largest of 9 layers (--all"), std::string::npos) << layers;
    const std::string all = quantization_table(report, 9);
    EXPECT_EQ(std::count(all.begin(), all.end(), '\n'), 11);
}

TEST(TracePage, QuantizationErrorIsThatOfCellsReadFromCodes) {
    trace::TraceRecord r = mixed_record();
    r.cache = trace::CacheKind::standard;
    r.k = {};
    r.k.rows = {trace::GgmlType::q8_0, {32, 1, 2, 1}, std::vector<std::byte>(2 * 34)};
    r.k.cells = {5, 6};
    const fp16_t one = fp16_t(0x3c00);
    for (size_t row = 0; row < 2; ++row) {  // scale 1, codes 3: rows of 3
        std::memcpy(r.k.rows.bytes.data() + row * 34, &one, 2);
        std::memset(r.k.rows.bytes.data() + row * 34 + 2, 3, 32);
    }
    Originals originals;
    originals.values.assign(130 * 32, 4.0F);
    originals.known.assign(130, 0);
    originals.known[5] = 1;
    const QuantizationFigures figures = quantization(r, Side::k, originals);
    EXPECT_EQ(figures.n_cells, 1);
    EXPECT_DOUBLE_EQ(figures.rms(), 1);
    EXPECT_DOUBLE_EQ(figures.relative(), 0.25);
    EXPECT_DOUBLE_EQ(figures.max_error, 1);
    originals.values[5 * 32] = NAN;
    EXPECT_TRUE(std::isnan(quantization(r, Side::k, originals).max_error));
}

}  // namespace

}  // namespace mixed_kv::trace_tools

namespace mixed_kv::tools {

namespace {

TEST(Bundle, BytesAreTheTextAndTheArrays) {
    Bundle bundle;
    bundle.json["name"] = "\xff";  // no UTF-8
    bundle.add("bytes", std::vector<uint8_t>{7}, {1});
    bundle.add("numbers", std::vector<float>{1.5F, -2}, {2, 1});
    const std::vector<std::byte> bytes = bundle.bytes();
    uint32_t length = 0;
    std::memcpy(&length, bytes.data(), 4);
    const auto* text = reinterpret_cast<const char*>(bytes.data() + 4);
    const nlohmann::json json = nlohmann::json::parse(text, text + length);
    EXPECT_EQ(json["name"], "\xef\xbf\xbd");
    EXPECT_EQ(json["arrays"]["numbers"]["at"], 4);  // aligned
    EXPECT_EQ(json["arrays"]["numbers"]["type"], "f32");
    ASSERT_EQ(bytes.size(), 4 + length + 12);
    float second = 0;
    std::memcpy(&second, bytes.data() + 4 + length + 8, 4);
    EXPECT_EQ(second, -2);
}

TEST(Packing, IsBase64) {
    const std::string text = "any carnal pleasure";
    const std::string packed = pack(std::as_bytes(std::span(text)));
    EXPECT_EQ(packed.size() % 4, 0U);
    EXPECT_EQ(packed.find_first_not_of("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/="),
              std::string::npos);
    if (std::string(packing_name()) == "stored") {
        EXPECT_EQ(packed, "YW55IGNhcm5hbCBwbGVhc3VyZQ==");
    }
    EXPECT_EQ(pack({}).size() % 4, 0U);
}

}  // namespace

}  // namespace mixed_kv::tools
