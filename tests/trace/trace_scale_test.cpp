// Long traces: memory stays flat while writing, and opening stays quick.

#include <gtest/gtest.h>

#include <ctime>
#include <string>
#include <vector>

#include "trace/gguf_reader.h"
#include "trace/gguf_writer.h"
#include "trace/trace_reader.h"
#include "trace/trace_writer.h"
#include "trace_test_support.h"

namespace mixed_kv::trace::testing {
namespace {

constexpr double kMiB = 1024.0 * 1024.0;

// CPU time: others may use the machine, too.
double seconds_since(std::clock_t start) {
    return static_cast<double>(std::clock() - start) / double{CLOCKS_PER_SEC};
}

TEST(TraceScale, OpensAQuarterMillionTensors) {
    constexpr int kTensors = 256 * 1024;
    const TempFolder folder;
    {
        GgufStreamWriter writer(folder / "many.gguf", {.expected_tensors = kTensors});
        const float value = 1.0f;
        for (int i = 0; i < kTensors; ++i) {
            writer.add_tensor(tensor_name("kqv_out", i % 32, i / 32), GgmlType::f32, {1, 1, 1, 1},
                              std::as_bytes(std::span(&value, 1)));
        }
        writer.finish();
    }
    const uint64_t before = resident_bytes();
    const auto start = std::clock();
    const GgufReader file(folder / "many.gguf");
    const double seconds = seconds_since(start);
    const double mib = static_cast<double>(resident_bytes() - before) / kMiB;
    EXPECT_EQ(file.n_tensors(), static_cast<size_t>(kTensors));
    EXPECT_TRUE(file.find_tensor(tensor_name("kqv_out", 31, kTensors / 32 - 1)));
    RecordProperty("seconds", std::to_string(seconds));
    RecordProperty("mib", std::to_string(mib));
    std::printf("256k tensors: %.3f s, %.1f MiB\n", seconds, mib);
    EXPECT_LT(seconds, 5.0);
    if (!sanitized()) {
        EXPECT_LT(mib, 128.0);
    }
}

TEST(TraceScale, TwoThousandCompactStepsInFlatMemory) {
    constexpr int kSteps = 2000;
    constexpr int kLayers = 8;
    const TempFolder folder;
    const auto path = folder / "long.gguf";
    // One context's rows and pages; q and kqv_out differ per step. A window that slides would only add new
    // rows.
    std::vector<TraceRecord> layers;
    for (int layer = 0; layer < kLayers; ++layer) {
        layers.push_back(sample_record(layer, 0));
    }
    uint64_t settled = 0;
    {
        TraceWriter writer(path, {.form = TraceForm::compact, .expected_records = kSteps * kLayers});
        for (int step = 0; step < kSteps; ++step) {
            for (TraceRecord& record : layers) {
                record.step = step;
                record.position = step;
                // The newest row is rewritten, as in a ring.
                record.k.rows.bytes.back() = static_cast<std::byte>(step & 0x3f);
                record.v.rows.bytes.back() = static_cast<std::byte>(step & 0x3f);
                writer.append(record);
            }
            if (step == 200) {
                settled = resident_bytes();
            }
        }
        const double growth = (static_cast<double>(resident_bytes()) - static_cast<double>(settled)) / kMiB;
        std::printf("memory growth from step 200 to %d: %.2f MiB\n", kSteps, growth);
        if (!sanitized()) {
            EXPECT_LT(growth, 2.0);
        }
        writer.finish();
    }
    const auto start = std::clock();
    const TraceReader trace(path);
    const double seconds = seconds_since(start);
    std::printf("%zu records, %zu tensors, %.1f MiB: opened in %.3f s\n", trace.records().size(),
                trace.gguf().n_tensors(), static_cast<double>(std::filesystem::file_size(path)) / kMiB,
                seconds);
    EXPECT_LT(seconds, 5.0);
    ASSERT_EQ(trace.records().size(), static_cast<size_t>(kSteps * kLayers));
    for (const int step : {0, 1, 999, kSteps - 1}) {
        const TraceRecord record = trace.load({kLayers - 1, step});
        EXPECT_EQ(record.k.rows.bytes.back(), static_cast<std::byte>(step & 0x3f));
    }
}

}  // namespace
}  // namespace mixed_kv::trace::testing
