// Bad input of mixed-kv-run: one clear line on stderr, a non-zero exit, never an abort.
#include <gtest/gtest.h>

#include <filesystem>

#include "command.h"
#include "common/resident_memory.h"

namespace mixed_kv::test {

namespace {

using tools::available_memory_bytes;

// llama.cpp's tables for that many tokens alone take 200 GB.
constexpr const char* kHugeContext = "4000000000";
constexpr std::uint64_t kHugeContextBytes = 200'000'000'000;

struct BadInput {
    std::string name;
    std::vector<std::string> arguments;
    int exit_status;
    std::string says;  // part of the line
    Environment environment = {};
};

void PrintTo(const BadInput& input, std::ostream* out) { *out << input.name; }

// "MODEL" stands for a good model, which exists only when the test runs.
std::vector<std::string> with_model(std::vector<std::string> arguments) {
    for (std::string& argument : arguments) {
        if (argument == "MODEL") {
            argument = random_model();
        } else if (argument == "NOT_GGUF") {
            argument = write_file("not.gguf", "This is no model, but long enough to look at.");
        } else if (argument == "EMPTY_FILE") {
            argument = write_file("empty.gguf", "");
        } else if (argument == "TRUNCATED") {
            argument = scratch_folder() + "/truncated.gguf";
            std::filesystem::copy_file(random_model(), argument,
                                       std::filesystem::copy_options::overwrite_existing);
            std::filesystem::resize_file(argument, std::filesystem::file_size(argument) / 2);
        } else if (argument == "BAD_HEADER") {
            argument =
                write_file("header.gguf", std::string("GGUF\3\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff", 16));
        } else if (argument == "LONG_PROMPT") {
            argument = long_prompt(600);
        } else if (argument == "FOLDER") {
            argument = scratch_folder();
        }
    }
    return arguments;
}

const BadInput kBadInputs[] = {
    {"NoArguments", {}, 2, "--model"},
    {"NoPrompt", {"-m", "MODEL"}, 2, "prompt"},
    {"TwoPrompts", {"-m", "MODEL", "-p", "a", "-f", "b"}, 2, "not both"},
    {"UnknownOption", {"-m", "MODEL", "-p", "a", "--frobnicate"}, 2, "frobnicate"},
    {"NoModelFile", {"-m", "no/such/model.gguf", "-p", "a"}, 1, "no/such/model.gguf"},
    {"ModelIsAFolder", {"-m", "FOLDER", "-p", "a"}, 1, "folder"},
    {"NotGguf", {"-m", "NOT_GGUF", "-p", "a"}, 1, "not a GGUF file"},
    {"EmptyModelFile", {"-m", "EMPTY_FILE", "-p", "a"}, 1, "not a GGUF file"},
    {"TruncatedModel", {"-m", "TRUNCATED", "-p", "a"}, 1, "truncated.gguf"},
    {"BadHeader", {"-m", "BAD_HEADER", "-p", "a"}, 1, "header.gguf"},
    {"NoPromptFile", {"-m", "MODEL", "-f", "no/such/prompt.txt"}, 1, "no/such/prompt.txt"},
    {"PromptFileIsAFolder", {"-m", "MODEL", "-f", "FOLDER"}, 1, "folder"},
    {"UnknownKeyFormat", {"-m", "MODEL", "-p", "a", "--kv-k", "q77"}, 1, "q77"},
    {"UnknownValueFormat", {"-m", "MODEL", "-p", "a", "--kv-v", "float"}, 1, "float"},
    {"NegativeWindow", {"-m", "MODEL", "-p", "a", "--kv-window", "-5"}, 1, "-5"},
    {"WindowIsNoNumber", {"-m", "MODEL", "-p", "a", "--kv-window", "many"}, 1, "many"},
    {"NegativeSinks", {"-m", "MODEL", "-p", "a", "--kv-sinks", "-1"}, 1, "-1"},
    {"UnknownPreset", {"-m", "MODEL", "-p", "a", "--kv-preset", "best"}, 1, "best"},
    {"LayersWithoutFormat", {"-m", "MODEL", "-p", "a", "--kv-layers", "0-1,-2--1"}, 1, "colon"},
    {"BitsWithoutCalibration", {"-m", "MODEL", "-p", "a", "--kv-bits", "4.25"}, 1, "--calibrate"},
    {"CalibrationMissing",
     {"-m", "MODEL", "-p", "a", "--kv-bits", "4.25", "--kv-calibration", "no/such/file"},
     1,
     "no/such/file"},
    {"BadSettingInTheEnvironment", {"-m", "MODEL", "-p", "a"}, 1, "q77", {{"GGML_MIXED_KV_K", "q77"}}},
    {"MisspeltSetting",
     {"-m", "MODEL", "-p", "a"},
     1,
     "GGML_MIXED_KV_WINDWO",
     {{"GGML_MIXED_KV_WINDWO", "5"}}},
    {"UnknownCacheType", {"-m", "MODEL", "-p", "a", "-ctk", "q9_9"}, 2, "q9_9"},
    {"NegativePredict", {"-m", "MODEL", "-p", "a", "-n", "-3"}, 2, "predict"},
    {"PredictIsNoNumber", {"-m", "MODEL", "-p", "a", "-n", "lots"}, 2, "lots"},
    {"NegativeContext", {"-m", "MODEL", "-p", "a", "-c", "-7"}, 2, "-7"},
    {"NoThreads", {"-m", "MODEL", "-p", "a", "-t", "0"}, 2, "threads"},
    {"NoBatch", {"-m", "MODEL", "-p", "a", "-b", "0"}, 2, "batch"},
    {"NegativeTemperature", {"-m", "MODEL", "-p", "a", "--temp", "-1"}, 2, "temp"},
    {"TemperatureIsNaN", {"-m", "MODEL", "-p", "a", "--temp", "nan"}, 2, "temp"},
    {"CompareWithoutMixed", {"-m", "MODEL", "-p", "a", "--compare", "--no-mixed"}, 2, "--no-mixed"},
    {"PromptDoesNotFit",
     {"-m", "MODEL", "-p", "LONG_PROMPT", "-c", "256"},
     1,
     "do not fit the context of 256"},
    {"ContextBeyondMemory", {"-m", "MODEL", "-p", "a", "-c", kHugeContext}, 1, kHugeContext},
    {"PluginMissing",
     {"-m", "MODEL", "-p", "a"},
     1,
     "/no/plugin.so",
     {{"GGML_BACKEND_PATH", "/no/plugin.so"}}},
    {"PluginIsNoBackend",
     {"-m", "MODEL", "-p", "a"},
     1,
     "was not loaded",
     {{"GGML_BACKEND_PATH", MIXED_KV_GGML_BASE_FILE}}},
};

class RunBadInput : public testing::TestWithParam<BadInput> {};

TEST_P(RunBadInput, OneLineAndNonZeroExit) {
    const BadInput& input = GetParam();
    if (input.says == kHugeContext && available_memory_bytes() > kHugeContextBytes) {
        GTEST_SKIP() << "this machine could hold it";
    }
    const CommandResult result = run_tool("mixed-kv-run", with_model(input.arguments), input.environment);
    EXPECT_EQ(result.exit_status, input.exit_status) << result.err;
    EXPECT_EQ(result.out, "");
    std::vector<std::string> lines = result.err_lines();
    // A warning about the context length may come first, as llama.cpp gives one.
    std::erase_if(lines,
                  [](const std::string& line) { return line.rfind("mixed-kv-run: warning:", 0) == 0; });
    ASSERT_EQ(lines.size(), 1U) << result.err;
    EXPECT_EQ(lines.front().rfind("mixed-kv-run: error: ", 0), 0U) << lines.front();
    EXPECT_NE(lines.front().find(input.says), std::string::npos) << lines.front();
}

INSTANTIATE_TEST_SUITE_P(Table, RunBadInput, testing::ValuesIn(kBadInputs),
                         [](const testing::TestParamInfo<BadInput>& test) { return test.param.name; });

}  // namespace

}  // namespace mixed_kv::test
