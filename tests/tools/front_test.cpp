// What all programs have in common: --help, --version, how a command line is refused, and that nothing they
// say is lost without a word.
#include <gtest/gtest.h>

#include <sys/wait.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <sstream>

#include "command.h"

namespace mixed_kv::test {

namespace {

// Every program of this build, ours and the tests'.
std::vector<std::string> programs() {
    std::vector<std::string> names;
    std::istringstream text(MIXED_KV_PROGRAMS);
    for (std::string name; std::getline(text, name, ',');) names.push_back(name);
    return names;
}

class Front : public testing::TestWithParam<std::string> {};

TEST_P(Front, HelpAndVersion) {
    const CommandResult help = run_tool(GetParam(), {"--help"});
    EXPECT_EQ(help.exit_status, 0) << help.err;
    for (const char* part : {"Usage: ", "--help", "--version"}) {
        EXPECT_NE(help.out.find(part), std::string::npos) << part << " is not in: " << help.out;
    }
    const CommandResult version = run_tool(GetParam(), {"--version"});
    EXPECT_EQ(version.exit_status, 0) << version.err;
    EXPECT_EQ(version.out, GetParam() + " (ggml-mixed-kv) " MIXED_KV_VERSION "\n");
}

// Somebody who looks for the right value of a setting may have a wrong one.
TEST_P(Front, HelpDoesNotDependOnSettings) {
    const CommandResult help =
        run_tool(GetParam(), {"--help"},
                 {{"GGML_MIXED_KV_K", "q77"}, {"GGML_MIXED_KV", "no"}, {"MIXED_KV_ISA", "mmx"}});
    EXPECT_EQ(help.exit_status, 0) << help.err;
    EXPECT_EQ(help.out, run_tool(GetParam(), {"--help"}).out);
}

// Required options are missing, too, wherever there are any; the one that does not exist comes first.
TEST_P(Front, UnknownOptionIsNamed) {
    const CommandResult result = run_tool(GetParam(), {"--frobnicate"});
    EXPECT_EQ(result.exit_status, 2) << result.err;
    EXPECT_EQ(result.out, "");
    ASSERT_EQ(result.err_lines().size(), 1U) << result.err;
    EXPECT_EQ(result.err.rfind(GetParam() + ": error: ", 0), 0U) << result.err;
    EXPECT_NE(result.err.find("--frobnicate"), std::string::npos) << result.err;
}

TEST_P(Front, OutputThatIsLostIsAnError) {
    const std::pair<Output, const char*> outputs[] = {{Output::full_disk, "No space left on device"},
                                                      {Output::broken_pipe, "Broken pipe"},
                                                      {Output::closed, "Bad file descriptor"}};
    for (const char* option : {"--help", "--version"}) {
        for (const auto& [output, reason] : outputs) {
            const CommandResult result = run_tool(GetParam(), {option}, {}, output);
            EXPECT_EQ(result.exit_status, 1) << option << ", " << reason << ": " << result.err;
            EXPECT_EQ(result.err, GetParam() + ": error: cannot write to standard output: " + reason + "\n");
        }
    }
}

INSTANTIATE_TEST_SUITE_P(Programs, Front, testing::ValuesIn(programs()), [](const auto& test) {
    std::string name = test.param;
    std::replace(name.begin(), name.end(), '-', '_');
    return name;
});

// Text as it is generated, one object at the end, a report: what each program prints when it has worked.
TEST(Output, LostResultsAreAnError) {
    const std::vector<std::vector<std::string>> commands = {
        {"mixed-kv-run", "-m", random_model(), "-p", "a", "-n", "2", "-t", "1"},
        {"mixed-kv-run", "-m", random_model(), "-p", "a", "-n", "2", "-t", "1", "--json"},
        {"mixed-kv-doctor"},
        {"mixed-kv-doctor", "--json"},
        {"mixed-kv-stress", "--list"},
        {"mixed-kv-bench", "attention", "--n-kv", "64", "--rounds", "5", "--rotate-mib", "1", "--host",
         "none", "-t", "1"},
        {"make-random-model", "--list"},
        {"logits-runner", "--model", random_model(), "--prompt", "4"}};
    for (const std::vector<std::string>& command : commands) {
        for (const Output output : {Output::full_disk, Output::broken_pipe, Output::closed}) {
            const CommandResult result =
                run_tool(command.front(), {command.begin() + 1, command.end()}, {}, output);
            EXPECT_EQ(result.exit_status, 1) << command.front() << ": " << result.err;
            EXPECT_NE(result.err.find(command.front() + ": error: cannot write to standard output: "),
                      std::string::npos)
                << result.err;
        }
    }
}

// The disk, or the user's limit, ends while the file grows.
TEST(Output, LogitsAppearOnlyWhenComplete) {
    const std::string path = write_file("logits", "old");
    const std::string command = "ulimit -f 8; exec " MIXED_KV_BIN_DIR
                                "/kqv-trace-monitor -q -t 1 -fa on -n 24 "
                                "-p '' --max-steps 0 -m " +
                                random_model() + " --save-logits " + path + " > /dev/null 2> " +
                                scratch_folder() + "/logits.err";
    const int status = std::system(command.c_str());
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 1) << status;
    const auto text_of = [](const std::string& name) {
        std::ifstream file(name, std::ios::binary);
        return std::string{std::istreambuf_iterator<char>(file), {}};
    };
    EXPECT_EQ(text_of(path), "old");
    const std::string errors = text_of(scratch_folder() + "/logits.err");
    EXPECT_EQ(errors.rfind("kqv-trace-monitor: error: cannot write '" + path, 0), 0U) << errors;
    EXPECT_EQ(std::count(errors.begin(), errors.end(), '\n'), 1) << errors;
}

// A program without a standard output opens files of its own; none of them may take that place.
TEST(Output, NothingIsPrintedIntoAFile) {
    const std::string path = scratch_folder() + "/made.gguf";
    const CommandResult to_file = run_tool("make-random-model", {"--out", path});
    ASSERT_EQ(to_file.exit_status, 0) << to_file.err;
    const auto size = std::filesystem::file_size(path);
    std::filesystem::remove(path);
    EXPECT_EQ(run_tool("make-random-model", {"--out", path}, {}, Output::closed).exit_status, 1);
    EXPECT_EQ(std::filesystem::file_size(path), size);
}

}  // namespace

}  // namespace mixed_kv::test
