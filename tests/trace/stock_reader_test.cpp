// ggml's own GGUF reader must read what we write. Built and run where llama.cpp is part of the build.

#include <gtest/gtest.h>

#include <cstring>
#include <memory>
#include <string>

#include "trace/gguf_writer.h"
#include "trace/trace_reader.h"
#include "trace/trace_writer.h"
#include "trace_test_support.h"

#ifdef MIXED_KV_HAVE_GGML
#include <ggml.h>
#include <gguf.h>
#endif

namespace mixed_kv::trace::testing {
namespace {

#ifdef MIXED_KV_HAVE_GGML

struct StockFile {
    explicit StockFile(const std::filesystem::path& path) {
        gguf.reset(gguf_init_from_file(path.c_str(), {.no_alloc = false, .ctx = &tensors}));
    }
    ~StockFile() { ggml_free(tensors); }
    StockFile(const StockFile&) = delete;
    StockFile& operator=(const StockFile&) = delete;

    ggml_context* tensors = nullptr;
    std::unique_ptr<gguf_context, decltype(&gguf_free)> gguf{nullptr, gguf_free};
};

// Every tensor has the same name, type, shape and bytes for both readers.
void expect_same(const std::filesystem::path& path) {
    const StockFile stock(path);
    ASSERT_NE(stock.gguf, nullptr);
    const GgufReader ours(path);
    ASSERT_EQ(static_cast<size_t>(gguf_get_n_tensors(stock.gguf.get())), ours.n_tensors());
    ASSERT_EQ(static_cast<size_t>(gguf_get_n_kv(stock.gguf.get())), ours.n_kv());
    ggml_tensor* theirs = ggml_get_first_tensor(stock.tensors);  // the blob that holds all data
    for (size_t i = 0; i < ours.n_tensors(); ++i) {
        const GgufTensor tensor = ours.tensor(i);
        theirs = ggml_get_next_tensor(stock.tensors, theirs);
        ASSERT_NE(theirs, nullptr);
        ASSERT_EQ(tensor.name, ggml_get_name(theirs));
        ASSERT_EQ(static_cast<int>(tensor.type), static_cast<int>(theirs->type));
        for (int d = 0; d < 4; ++d) {
            ASSERT_EQ(tensor.ne[static_cast<size_t>(d)], theirs->ne[d]) << tensor.name;
        }
        ASSERT_EQ(tensor.bytes, ggml_nbytes(theirs)) << tensor.name;
        const std::vector<std::byte> bytes = ours.read_bytes(tensor);
        ASSERT_TRUE(bytes.empty() || std::memcmp(bytes.data(), theirs->data, bytes.size()) == 0)
            << tensor.name;
    }
}

TEST(StockReader, KnowsTheSameTypes) {
    for (int type = 0; type < GGML_TYPE_COUNT; ++type) {
        const GgmlTypeInfo* ours = find_ggml_type(type);
        const auto theirs = static_cast<ggml_type>(type);
        if (ggml_type_size(theirs) == 0) {
            EXPECT_EQ(ours, nullptr) << type;
            continue;
        }
        ASSERT_NE(ours, nullptr) << type << " " << ggml_type_name(theirs);
        EXPECT_STREQ(ours->name, ggml_type_name(theirs));
        EXPECT_EQ(ours->block_values, ggml_blck_size(theirs)) << ours->name;
        EXPECT_EQ(static_cast<size_t>(ours->block_bytes), ggml_type_size(theirs)) << ours->name;
    }
}

TEST(StockReader, ReadsTracesOfBothForms) {
    const TempFolder folder;
    for (const TraceForm form : {TraceForm::self_contained, TraceForm::compact}) {
        for (const uint64_t expected_records : {0, 10}) {  // header too small, data moved; and fitting
            TraceWriter writer(folder / "t.gguf", {.form = form, .expected_records = expected_records});
            SampleShape shape{.n_tokens = 20, .n_used = 60, .with_sinks = true};
            for (int step = 0; step < 5; ++step, shape.n_used += 20) {
                writer.append(sample_record(0, step, shape));
                writer.append(sample_record(1, step, shape));
            }
            writer.finish();
            expect_same(folder / "t.gguf");
        }
    }
}

TEST(StockReader, ReadsTenThousandTensors) {
    const TempFolder folder;
    TraceWriter writer(folder / "t.gguf", {.expected_records = 720});
    SampleShape shape{.n_head = 2, .n_head_kv = 1, .head_dim = 4, .n_used = 80, .hot_rows = 4};
    for (int step = 0; step < 180; ++step) {
        for (int layer = 0; layer < 4; ++layer) {
            writer.append(sample_record(layer, step, shape));
        }
    }
    writer.finish();
    EXPECT_GT(GgufReader(folder / "t.gguf").n_tensors(), 10'000u);
    expect_same(folder / "t.gguf");
}

#else

TEST(StockReader, ReadsOurFiles) { GTEST_SKIP() << "built without llama.cpp (MIXED_KV_BUILD_PLUGIN=OFF)"; }

#endif

}  // namespace
}  // namespace mixed_kv::trace::testing
