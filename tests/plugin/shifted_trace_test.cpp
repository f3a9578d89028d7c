// A trace of attention over a cache whose K-shift is still to be applied to cold pages: the record holds
// those pages as rows, and recomputing it gives the recorded output.
#include <gtest/gtest.h>

#include "kqv-tensor-reader/check.h"
#include "kqv-trace-monitor/capture.h"
#include "plugin_test.h"

using namespace mixed_kv::test;

namespace {

struct Recorder {
    std::vector<mixed_kv::trace::TraceRecord> records;
    bool enabled = false;
    static bool callback(ggml_tensor* node, bool ask, void* data) {
        auto* recorder = static_cast<Recorder*>(data);
        if (!recorder->enabled || node->op != GGML_OP_FLASH_ATTN_EXT) return false;
        if (!ask)
            recorder->records.push_back(
                mixed_kv::tools::capture_attention(node, &plugin_api(), mixed_kv::tools::Sources::record));
        return true;
    }
};

}  // namespace

TEST(ShiftedTrace, HoldsTurnedRows) {
    load_backends();
    char error[256] = "";
    ASSERT_EQ(plugin_api().configure("k=q4,v=q4,window=32,sinks=4", error, sizeof error), 1) << error;
    const Model model(small_model(), CacheOwner::kPlugin);
    Recorder recorder;
    ContextOptions options;
    options.n_ctx = 512;
    options.n_ubatch = 64;
    options.n_threads = 1;
    options.eval_callback = Recorder::callback;
    options.eval_callback_data = &recorder;
    Context context(model, options);
    context.decode(random_tokens(250, 512, 1));
    for (const bool shifted : {false, true}) {
        if (shifted) context.shift(0, 64, -1, 9);
        recorder.records.clear();
        recorder.enabled = true;
        context.decode({20}, context.last_position(0) + 1);
        recorder.enabled = false;
        ASSERT_EQ(recorder.records.size(), 3u);
        std::int32_t layer = 0;
        for (auto& record : recorder.records) {
            record.layer = layer++;
            mixed_kv::trace::validate(record);
            // Pages 1 and 2 have moved; page 0 has not.
            EXPECT_EQ(record.k.pages.size(), shifted ? 1u : 3u);
            EXPECT_EQ(record.v.pages.size(), 3u);
            // Rows are rounded to binary16 where attention has turned the query instead.
            mixed_kv::trace_tools::CheckOptions check;
            if (shifted) check.tolerance = 1e-3;
            const auto result = mixed_kv::trace_tools::check_record(record, check);
            EXPECT_TRUE(result.pass) << result.problem;
        }
    }
    plugin_api().configure("", nullptr, 0);
}
