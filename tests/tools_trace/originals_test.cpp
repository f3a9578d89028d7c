// kqv-trace-monitor --keep-originals and what the reader makes of it.
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <map>
#include <utility>

#include "kqv-tensor-reader/trace_values.h"
#include "mixed_kv/fp16.h"
#include "trace/trace_reader.h"
#include "trace/written_rows.h"
#include "trace_runs.h"

namespace mixed_kv::test {

namespace {

std::vector<std::string> long_run(const std::vector<std::string>& more) {
    std::vector<std::string> arguments = {"-p", letters(300), "-n", "4", "-ub", "64", "--mixed-kv-cache"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return arguments;
}

// Rows that the cache still holds exactly are the originals, bit for bit; with exact storage of everything,
// all are.
TEST(Originals, AreWhatTheCacheWasGiven) {
    for (const char* form : {"", "--compact"}) {
        const std::string trace = scratch("originals-exact.gguf");
        std::vector<std::string> more = {"--keep-originals", "--kv-k", "q4", "--kv-v", "q4"};
        if (*form != '\0') more.emplace_back(form);
        record(random_model("llama"), trace, long_run(more));
        const trace::TraceReader reader(trace);
        trace::OriginalRows index(reader);
        ASSERT_FALSE(index.empty());
        int64_t n_exact = 0, n_cold = 0;
        for (const trace::RecordId id : reader.records()) {
            const trace::TraceRecord r = reader.load(id);
            for (const bool is_value : {false, true}) {
                const auto rows = index.rows(r, is_value);
                const trace::CachePart& part = is_value ? r.v : r.k;
                const std::vector<trace::CellPlace> places = trace::locate_cells(r, part);
                const int64_t n = r.n_head_kv * (is_value ? r.head_dim_v : r.head_dim_k);
                const std::vector<float> stored = trace_tools::to_floats(part.rows);
                for (size_t cell = 0; cell < places.size(); ++cell) {
                    if (places[cell].where == trace::CellPlace::Where::nowhere) continue;
                    ASSERT_EQ(rows.known[cell], 1) << cell;
                    n_cold += places[cell].where == trace::CellPlace::Where::page;
                    if (places[cell].where != trace::CellPlace::Where::row) continue;
                    ++n_exact;
                    for (int64_t i = 0; i < n; ++i) {
                        ASSERT_EQ(fp16_to_fp32(rows.values[size_t(int64_t(cell) * n + i)]),
                                  stored[size_t(places[cell].index * n + i)]);
                    }
                }
            }
        }
        EXPECT_GT(n_exact, 100);
        EXPECT_GT(n_cold, 100);
    }
}

double relative(const nlohmann::json& json, const char* side) {
    return json["quantization"][0][side]["relative"].get<double>();
}

// Fewer bits, more error; K and V apart; in the text, too.
TEST(Originals, QuantizationErrorByLayer) {
    std::map<std::string, nlohmann::json> json;
    for (const char* format : {"q8", "q4", "q2"}) {
        const std::string trace = scratch("originals.gguf");
        record(random_model("llama"), trace,
               long_run({"--keep-originals", "--kv-k", format, "--kv-v", "q8"}));
        const CommandResult result = read_trace(trace, {"--json"});
        EXPECT_EQ(result.exit_status, 0) << result.err;
        json[format] = result.json();
        EXPECT_EQ(json[format]["originals"], "the rows as they were written");
        ASSERT_EQ(json[format]["quantization"].size(), 3U);
        const CommandResult text = read_trace(trace);
        EXPECT_NE(text.out.find("quantization error against the rows as they were written"),
                  std::string::npos)
            << text.out;
    }
    EXPECT_LT(relative(json["q8"], "k"), 0.01);
    EXPECT_GT(relative(json["q4"], "k"), 3 * relative(json["q8"], "k"));
    EXPECT_GT(relative(json["q2"], "k"), 2 * relative(json["q4"], "k"));
    EXPECT_LT(relative(json["q2"], "v"), 0.01);  // V keeps its own format
}

// A quantized cache of llama.cpp's own has such errors as well; an F16 one has none.
TEST(Originals, OfTheHostsOwnCache) {
    const std::string trace = scratch("originals-host.gguf");
    record(random_model("llama"), trace,
           {"-p", letters(100), "-n", "2", "-ub", "64", "-ctk", "q8_0", "-ctv", "q8_0", "--keep-originals"});
    const nlohmann::json json = read_trace(trace, {"--json"}).json();
    ASSERT_EQ(json["quantization"].size(), 3U);
    EXPECT_GT(relative(json, "k"), 1e-4);
    EXPECT_LT(relative(json, "k"), 0.05);
    record(random_model("llama"), trace, {"-p", letters(100), "-n", "2", "-ub", "64", "--keep-originals"});
    EXPECT_EQ(read_trace(trace, {"--json"}).json()["quantization"].size(), 0U);
}

TEST(Originals, KeepingThemChangesNothing) {
    const auto run = [](std::vector<std::string> more) {
        return record(random_model("llama"), scratch("originals-same.gguf"), long_run(more)).out;
    };
    EXPECT_EQ(run({}), run({"--keep-originals"}));
}

TEST(Originals, NeedSources) {
    const CommandResult result =
        run_tool("kqv-trace-monitor", {"-m", random_model("llama"), "-p", "a", "--no-trace-sources",
                                       "--keep-originals", "--save-gguf", scratch("none.gguf")});
    EXPECT_EQ(result.exit_status, 2);
    EXPECT_EQ(result.err_lines().size(), 1U);
    EXPECT_FALSE(std::filesystem::exists(scratch("none.gguf")));
}

// A screen of records, what fails first; --all has them all.
TEST(Originals, TablesAreOneScreen) {
    const std::string trace = scratch("screen.gguf");
    record(random_model("llama"), trace, {"-p", letters(60), "-n", "20", "-ub", "32", "--mixed-kv-cache"});
    const auto lines = [](const std::string& text) { return std::count(text.begin(), text.end(), '\n'); };
    const CommandResult screen = read_trace(trace), all = read_trace(trace, {"--all"}),
                        strict = read_trace(trace, {"--tol", "1e-9"});
    EXPECT_LE(lines(screen.out), 24) << screen.out;
    EXPECT_GT(lines(all.out), 60);
    EXPECT_EQ(strict.exit_status, 1);
    EXPECT_LE(strict.err_lines().size(), 6U);
    EXPECT_NE(strict.err.find("more records (--all)"), std::string::npos) << strict.err;
}

}  // namespace

}  // namespace mixed_kv::test
