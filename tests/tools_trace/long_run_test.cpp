// A long run with --compact: the monitor's memory does not grow with the file, and the reader opens it at
// once.
#include <gtest/gtest.h>

#include <filesystem>

#include "trace_runs.h"

namespace mixed_kv::test {

namespace {

constexpr double kMiB = 1024.0 * 1024.0;

// Records all layers of a random model for n steps of one token each.
double record_steps(const std::string& trace, int n_steps) {
    return memory_of("kqv-trace-monitor", {"-m",
                                           random_model("llama"),
                                           "-p",
                                           "",
                                           "-t",
                                           "1",
                                           "-fa",
                                           "on",
                                           "-n",
                                           std::to_string(n_steps),
                                           "-c",
                                           "2048",
                                           "--seed",
                                           "1",
                                           "-q",
                                           "--layer",
                                           "-1",
                                           "--compact",
                                           "--mixed-kv-cache",
                                           "--save-gguf",
                                           trace});
}

TEST(LongRun, TwoThousandCompactStepsOfAllLayers) {
    const std::string trace = scratch("2000.gguf");
    const double short_run = record_steps(trace, 500);
    const double short_bytes = double(std::filesystem::file_size(trace));
    const double long_run = record_steps(trace, 2000);
    const double bytes = double(std::filesystem::file_size(trace));
    std::printf("500 steps: %.1f MiB of memory for a file of %.1f MiB; 2000 steps: %.1f and %.1f MiB\n",
                short_run / kMiB, short_bytes / kMiB, long_run / kMiB, bytes / kMiB);
    EXPECT_GT(bytes - short_bytes, 30 * kMiB);
    if (!kSanitized) {
        EXPECT_LT(long_run - short_run, 4 * kMiB);
    }

    const double before = seconds_of_children();
    const CommandResult summary = read_trace(trace, {"--summary", "--json"});
    const double seconds = seconds_of_children() - before;
    std::printf("opened in %.2f s of CPU time\n", seconds);
    EXPECT_EQ(summary.exit_status, 0) << summary.err;
    EXPECT_LT(seconds, 5.0);
    const nlohmann::json json = summary.json();
    EXPECT_EQ(json["form"], "compact");
    EXPECT_EQ(json["steps"], 2000);
    EXPECT_EQ(json["layers"], 3);
    EXPECT_EQ(json["records"], 6000);
    EXPECT_EQ(json["bytes"].get<double>(), bytes);
    EXPECT_GT(json["tensors"], 6000 * 7);

    const CommandResult last = read_trace(trace, {"--json", "--step", "1999"});
    EXPECT_EQ(last.exit_status, 0) << last.err;
    EXPECT_GT(last.json()["records"][0]["n_cold"], 1000);
    std::filesystem::remove(trace);
}

}  // namespace

}  // namespace mixed_kv::test
