// mixed-kv-run --watch: the panel's text, and the program on a terminal and without one.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <pty.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <csignal>
#include <string>
#include <vector>

#include "command.h"
#include "mixed-kv-run/watch_text.h"

namespace mixed_kv::test {

namespace {

using tools::watch_line;
using tools::watch_panel;
using tools::WatchState;

WatchState state_of(int n_layers) {
    WatchState state;
    state.progress = {.n_prompt = 1200, .n_prompt_done = 600, .tokens_per_second = 812.34};
    for (int i = 0; i < n_layers; i++) state.layers.push_back({i, 4, 36});
    state.bytes = 1 << 20;
    state.f16_bytes = 3 << 20;
    return state;
}

TEST(Watch, LineSaysWhatIsThere) {
    WatchState state = state_of(2);
    EXPECT_EQ(watch_line(state),
              "prompt 600 of 1200 tokens, 812.3 t/s; 8 hot and 72 cold pages, 1.00 MiB (F16: 3.00 MiB)");
    state.progress.n_prompt_done = 1200;
    state.progress.n_generated = 7;
    EXPECT_EQ(watch_line(state).substr(0, 18), "generated 7 tokens");
}

TEST(Watch, PanelFitsItsRoom) {
    for (const int n_layers : {0, 1, 5, 40}) {
        for (const int rows : {1, 2, 8, 18}) {
            for (const int width : {10, 40, 80, 200}) {
                const std::vector<std::string> lines = watch_panel(state_of(n_layers), rows, width, false);
                EXPECT_LE(lines.size(), size_t(rows));
                for (const std::string& line : lines) EXPECT_LE(line.size(), size_t(width)) << line;
            }
        }
    }
    const std::vector<std::string> lines = watch_panel(state_of(40), 9, 100, false);
    ASSERT_EQ(lines.size(), 9U);
    EXPECT_EQ(lines[1].substr(0, 10), "layers 0-4");
    EXPECT_NE(lines[1].find(" 20 hot, 180 cold"), std::string::npos) << lines[1];
    EXPECT_NE(lines[1].find("=#"), std::string::npos) << lines[1];
}

struct OnTerminal {
    int status = -1;
    std::string output;
};

// Runs mixed-kv-run on a terminal of its own. signal_after: send SIGINT once this text has come.
OnTerminal run_on_terminal(std::vector<std::string> arguments, const std::string& signal_after = "") {
    winsize size = {};
    size.ws_row = 30;
    size.ws_col = 100;
    int terminal = -1;
    const pid_t child = forkpty(&terminal, nullptr, nullptr, &size);
    if (child == 0) {
        setenv("TERM", "xterm", 1);
        arguments.insert(arguments.begin(), MIXED_KV_BIN_DIR "/mixed-kv-run");
        std::vector<char*> argv;
        for (std::string& argument : arguments) argv.push_back(argument.data());
        argv.push_back(nullptr);
        execv(argv[0], argv.data());
        _exit(127);
    }
    OnTerminal result;
    std::array<char, 4096> buffer;
    bool signalled = signal_after.empty();
    for (ssize_t n = 0; (n = read(terminal, buffer.data(), buffer.size())) > 0;) {
        result.output.append(buffer.data(), size_t(n));
        if (!signalled && result.output.find(signal_after) != std::string::npos) {
            signalled = true;
            kill(child, SIGINT);
        }
    }
    waitpid(child, &result.status, 0);
    close(terminal);
    return result;
}

std::vector<std::string> short_run(int n_predict) {
    return {"-m",      random_model(),
            "-p",      long_prompt(150),
            "-n",      std::to_string(n_predict),
            "-t",      "1",
            "--temp",  "0",
            "--watch", "--ignore-eos",
            "-b",      "64"};
}

TEST(Watch, PanelOnATerminal) {
    const OnTerminal run = run_on_terminal(short_run(8));
    EXPECT_TRUE(WIFEXITED(run.status) && WEXITSTATUS(run.status) == 0) << run.output;
    for (const char* part : {"generated 8 tokens", "layer 0", " hot, ", "MiB (F16: ", "\033[1;"}) {
        EXPECT_NE(run.output.find(part), std::string::npos) << part;
    }
    // The last thing about scrolling is that all rows do again.
    const size_t region = run.output.rfind("\033[1;"), all_rows = run.output.rfind("\033[r");
    ASSERT_NE(all_rows, std::string::npos);
    EXPECT_GT(all_rows, region);
    // The figures that any run ends with follow.
    EXPECT_NE(run.output.find("KV memory", all_rows), std::string::npos);
}

TEST(Watch, ASignalGivesTheTerminalBack) {
    const OnTerminal run = run_on_terminal(short_run(100000), "generated");
    EXPECT_TRUE(WIFSIGNALED(run.status) && WTERMSIG(run.status) == SIGINT);
    EXPECT_GT(run.output.rfind("\033[r"), run.output.rfind("\033[1;"));
}

TEST(Watch, PlainLinesElsewhere) {
    const CommandResult result = run_tool("mixed-kv-run", short_run(4));
    EXPECT_EQ(result.exit_status, 0) << result.err;
    EXPECT_EQ(result.err.find('\033'), std::string::npos);
    EXPECT_NE(result.err.find("mixed-kv-run: generated 4 tokens"), std::string::npos) << result.err;
    EXPECT_NE(result.err.find(" cold pages, "), std::string::npos) << result.err;
    const CommandResult plain =
        run_tool("mixed-kv-run", {"-m", random_model(), "-p", "a", "--watch", "--no-mixed"});
    EXPECT_EQ(plain.exit_status, 2);
    EXPECT_EQ(plain.err_lines().size(), 1U);
}

}  // namespace

}  // namespace mixed_kv::test
