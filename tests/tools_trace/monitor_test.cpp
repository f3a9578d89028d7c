// kqv-trace-monitor with kqv-tensor-reader, kqv-trace-diff and the NumPy script, as programs.
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <iterator>

#include "trace_runs.h"

namespace mixed_kv::test {

namespace {

// The command of the README, word by word.
std::vector<std::string> canonical(const std::string& model, const std::string& trace) {
    return {"-m",          model,  "-p",   "",    "--layer", "0",    "-t",
            "2",           "-fa",  "on",   "-n",  "4",       "-ngl", "0",
            "--seed",      "1024", "-ctk", "f16", "-ctv",    "f16",  "--mixed-kv-cache",
            "--save-gguf", trace};
}

void expect_canonical(const std::string& model, const std::string& name) {
    const std::string trace = scratch(name);
    const CommandResult monitor = run_tool("kqv-trace-monitor", canonical(model, trace));
    ASSERT_EQ(monitor.exit_status, 0) << monitor.err;
    for (const char* part :
         {"kqv_out", "k_quant  i8     empty", "v_quant  i8     empty", "mask", "tokens:"}) {
        EXPECT_NE(monitor.out.find(part), std::string::npos) << part << " is not in: " << monitor.out;
    }
    EXPECT_NE(monitor.err.find("-ngl 0 with --mixed-kv-cache"), std::string::npos) << monitor.err;
    const CommandResult reader = read_trace(trace, {"--json"});
    EXPECT_EQ(reader.exit_status, 0) << reader.err;
    const nlohmann::json json = reader.json();
    EXPECT_EQ(json["pass"], true);
    EXPECT_EQ(json["cache"], "mixed");
    EXPECT_EQ(json["steps"], 4);
    EXPECT_EQ(json["layers"], 1);
    EXPECT_EQ(json["tolerance"], 1e-4);
    EXPECT_LE(json["max_error"], 1e-4);
    ASSERT_EQ(json["records"].size(), 4U);
    for (size_t step = 0; step < 4; ++step) {
        const nlohmann::json& one = json["records"][step];
        EXPECT_EQ(one["layer"], 0);
        EXPECT_EQ(one["step"], step);
        EXPECT_EQ(one["n_hot"], step + 1);
        EXPECT_EQ(one["n_cold"], 0);
        EXPECT_TRUE(one["rms_error"].is_number() && one["max_error"].is_number());
        EXPECT_GE(one["tensors"].size(), 7U);
    }
}

TEST(Monitor, CanonicalCommandOnARandomModel) {
    expect_canonical(random_model("llama"), "reference_mixed.gguf");
}

TEST(Monitor, CanonicalCommandOnTheBundledModel) {
    const std::string model = bundled_model();
    if (model.empty()) GTEST_SKIP() << "no model in models/";
    expect_canonical(model, "reference_bundled.gguf");
}

TEST(Monitor, LongRunMostlyCold) {
    const std::string trace = scratch("long.gguf");
    record(random_model("llama"), trace, {"-p", letters(700), "-n", "64", "-ub", "64", "--mixed-kv-cache"});
    const CommandResult reader =
        read_trace(trace, {"--json", "--csv", scratch("long.csv"), "--picture", scratch("long.svg")});
    EXPECT_EQ(reader.exit_status, 0) << reader.err;
    const nlohmann::json json = reader.json();
    EXPECT_EQ(json["layers"], 3);
    EXPECT_GE(json["steps"], 63 + 11);
    const nlohmann::json& last = json["records"].back();
    EXPECT_GT(last["n_cold"], 2 * last["n_hot"].get<int>());
    EXPECT_NE(read_text(scratch("long.svg")).find("</svg>"), std::string::npos);
    EXPECT_NE(read_text(scratch("long.csv")).find("layer,step"), std::string::npos);
}

// Pages of one tensor in several formats, which step down from step to step.
TEST(Monitor, PagesUnderABudgetSayTheirOwnFormats) {
    for (const bool compact : {false, true}) {
        const std::string trace = scratch(compact ? "budget-compact.gguf" : "budget.gguf");
        std::vector<std::string> arguments = {
            "-p",       letters(700),       "-c",          "2048", "-n",          "32", "-ub",
            "64",       "--mixed-kv-cache", "--kv-budget", "30%",  "--kv-window", "32", "--kv-ladder",
            "f16,q8,q3"};
        if (compact) arguments.push_back("--compact");
        record(random_model("llama"), trace, arguments);
        const CommandResult reader = read_trace(trace, {"--json"});
        EXPECT_EQ(reader.exit_status, 0) << reader.err;
        const nlohmann::json json = reader.json();
        EXPECT_EQ(json["records"].front()["n_cold"], 0);
        EXPECT_GT(json["records"].back()["n_cold"], 0);
        const CommandResult listing = read_trace(trace, {"--list"});
        EXPECT_NE(listing.out.find("format q8 q3"), std::string::npos) << listing.out;
    }
}

// The compact form says the same in fewer bytes, and recording changes neither tokens nor logits.
TEST(Monitor, TracingChangesNothingAndCompactIsEqual) {
    const std::vector<std::string> common = {"-p", letters(300), "-n", "16", "-ub", "64", "--mixed-kv-cache"};
    const auto run = [&](const std::string& name, std::vector<std::string> more, bool save) {
        more.insert(more.end(), common.begin(), common.end());
        more.insert(more.end(), {"--save-logits", scratch(name + ".logits")});
        return record(random_model("llama"), save ? scratch(name + ".gguf") : "", more).out;
    };
    const std::string traced = run("traced", {}, true), compact = run("compact", {"--compact"}, true),
                      plain = run("plain", {"--max-steps", "0"}, false);
    EXPECT_EQ(traced, plain);
    EXPECT_EQ(compact, plain);
    const std::string logits = read_text(scratch("plain.logits"));
    EXPECT_GT(logits.size(), 0U);
    EXPECT_TRUE(read_text(scratch("traced.logits")) == logits);
    EXPECT_TRUE(read_text(scratch("compact.logits")) == logits);

    const CommandResult same =
        run_tool("kqv-trace-diff", {scratch("traced.gguf"), scratch("compact.gguf"), "--tol", "0"});
    EXPECT_EQ(same.exit_status, 0) << same.out;
    EXPECT_LT(std::filesystem::file_size(scratch("compact.gguf")),
              std::filesystem::file_size(scratch("traced.gguf")));
    const nlohmann::json of_compact = read_trace(scratch("compact.gguf"), {"--json", "--step", "12"}).json(),
                         of_traced = read_trace(scratch("traced.gguf"), {"--json", "--step", "12"}).json();
    ASSERT_EQ(of_traced["records"].size(), 3U);
    for (size_t i = 0; i < 3; ++i) {
        for (const char* key : {"max_error", "rms_error", "n_hot", "n_cold", "pass"}) {
            EXPECT_EQ(of_compact["records"][i][key], of_traced["records"][i][key]) << key;
        }
    }
}

class Architectures : public testing::TestWithParam<const char*> {};

TEST_P(Architectures, EveryStepWithinTolerance) {
    const std::string preset = GetParam(), trace = scratch(preset + ".trace.gguf");
    record(random_model(preset), trace, {"-p", letters(230), "-n", "6", "-ub", "32", "--mixed-kv-cache"});
    const CommandResult reader = read_trace(trace, {"--json"});
    EXPECT_EQ(reader.exit_status, 0) << reader.err;
    EXPECT_EQ(reader.json()["cache"], "mixed");
    std::filesystem::remove(trace);
}

// GQA, ALiBi, soft-cap with a sliding window, sinks with a sliding window, MLA, a recurrent hybrid, odd
// head_dim, layers that share another layer's K and V
INSTANTIATE_TEST_SUITE_P(Random, Architectures,
                         testing::Values("qwen3", "mpt", "gemma2", "gpt-oss", "deepseek2", "jamba",
                                         "llama-hd80", "gemma4"));

class CacheTypes : public testing::TestWithParam<const char*> {};

// llama.cpp's own error is reported as it is: the exit status may be 1, the figures must be small and there.
TEST_P(CacheTypes, StandardCacheIsReported) {
    const std::string type = GetParam(), trace = scratch("standard-" + type + ".gguf");
    record(random_model("llama"), trace,
           {"-p", letters(100), "-n", "3", "-ub", "64", "-ctk", type, "-ctv", type});
    const CommandResult reader = read_trace(trace, {"--json"});
    EXPECT_TRUE(reader.exit_status == 0 || reader.exit_status == 1) << reader.err;
    const nlohmann::json json = reader.json();
    EXPECT_EQ(json["cache"], "standard");
    EXPECT_EQ(json["records"][0]["n_cold"], 0);
    EXPECT_GT(json["max_error"], 0);
    EXPECT_LT(json["max_error"], 0.2);
    EXPECT_EQ(json["pass"].get<bool>(), reader.exit_status == 0);
}

INSTANTIATE_TEST_SUITE_P(Own, CacheTypes,
                         testing::Values("f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl"));

TEST(Monitor, SaysWhatIsNotTraced) {
    const std::string trace = scratch("off.gguf");
    const CommandResult off = run_tool("kqv-trace-monitor", {"-m", random_model("llama"), "-p", "", "-t", "1",
                                                             "-n", "2", "-fa", "off", "--save-gguf", trace});
    EXPECT_EQ(off.exit_status, 1);
    EXPECT_NE(off.err.find("flash attention is off"), std::string::npos) << off.err;
    EXPECT_FALSE(std::filesystem::exists(trace));
}

TEST(Monitor, BareFlashAttentionOptionMeansOn) {
    const CommandResult bare =
        run_tool("kqv-trace-monitor", {"-m", random_model("llama"), "-p", "", "-t", "1", "-fa", "-n", "1",
                                       "--mixed-kv-cache", "--layer", "1"});
    EXPECT_EQ(bare.exit_status, 0) << bare.err;
    EXPECT_NE(bare.out.find("layer 1, step 0"), std::string::npos) << bare.out;
}

TEST(Monitor, RefusesWrongArguments) {
    const std::string model = random_model("llama");
    for (const std::vector<std::string>& wrong :
         std::vector<std::vector<std::string>>{{},
                                               {"-p", "a"},
                                               {"-p", "a", "-f", "b"},
                                               {"-p", "a", "-ctk", "q9"},
                                               {"-p", "a", "-fa", "maybe"}}) {
        std::vector<std::string> arguments = wrong;
        if (!wrong.empty() && wrong.size() != 2) arguments.insert(arguments.end(), {"-m", model});
        EXPECT_EQ(run_tool("kqv-trace-monitor", arguments).exit_status, 2);
    }
    const CommandResult layer = run_tool("kqv-trace-monitor", {"-m", model, "-p", "", "--layer", "9"});
    EXPECT_EQ(layer.exit_status, 1);
    EXPECT_NE(layer.err.find("layers 0 to 2"), std::string::npos) << layer.err;
}

TEST(Monitor, TooLittleDiskIsRefusedAndTheOldFileStays) {
    const std::string path = write_file("old.gguf", "old");
    // 4096 steps of all layers with every row each: far more than any disk of a test machine.
    const CommandResult result = run_tool(
        "kqv-trace-monitor", {"-m", random_model("llama"), "-p", letters(3000), "-c", "2000000", "-t", "1",
                              "-fa", "on", "-n", "1900000", "-ub", "64", "--save-gguf", path});
    EXPECT_EQ(result.exit_status, 1);
    EXPECT_NE(result.err.find("free"), std::string::npos) << result.err;
    EXPECT_EQ(read_text(path), "old");
}

}  // namespace

}  // namespace mixed_kv::test
