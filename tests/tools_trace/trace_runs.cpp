#include "trace_runs.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fstream>
#include <iterator>
#include <map>
#include <stdexcept>

namespace mixed_kv::test {

const std::string& random_model(const std::string& preset) {
    static std::map<std::string, std::string> models;
    std::string& path = models[preset];
    if (path.empty()) {
        path = scratch(preset + ".gguf");
        const CommandResult made = run_tool("make-random-model", {"--arch", preset, "--out", path});
        if (made.exit_status != 0) throw std::runtime_error("make-random-model failed: " + made.err);
    }
    return path;
}

std::string scratch(const std::string& name) { return scratch_folder() + "/" + name; }

CommandResult record(const std::string& model, const std::string& trace,
                     const std::vector<std::string>& more) {
    std::vector<std::string> arguments = {"-m", model, "-t", "1", "-fa", "on", "--seed", "1", "-q"};
    if (!trace.empty()) arguments.insert(arguments.end(), {"--save-gguf", trace});
    arguments.insert(arguments.end(), more.begin(), more.end());
    CommandResult result = run_tool("kqv-trace-monitor", arguments);
    EXPECT_EQ(result.exit_status, 0) << result.err;
    return result;
}

CommandResult read_trace(const std::string& trace, const std::vector<std::string>& more) {
    std::vector<std::string> arguments = {"-i", trace};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return run_tool("kqv-tensor-reader", arguments);
}

double seconds_of_children() {
    struct rusage usage {};
    ::getrusage(RUSAGE_CHILDREN, &usage);
    const auto seconds = [](const timeval& t) { return double(t.tv_sec) + double(t.tv_usec) * 1e-6; };
    return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

double memory_of(const std::string& program, std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), MIXED_KV_BIN_DIR "/" + program);
    std::vector<char*> argv;
    for (std::string& text : arguments) argv.push_back(text.data());
    argv.push_back(nullptr);
    const pid_t child = ::fork();
    if (child == 0) {
        ::dup2(::open("/dev/null", O_WRONLY), 1);
        ::execv(argv[0], argv.data());
        ::_exit(127);
    }
    int status = 0;
    struct rusage usage {};
    ::wait4(child, &status, 0, &usage);
    EXPECT_EQ(status, 0) << program;
    return double(usage.ru_maxrss) * 1024;  // reported in KiB
}

std::string read_text(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

std::string letters(int n) {
    std::string text;
    unsigned state = 1;
    for (int i = 0; i < n; ++i) {
        state = state * 1664525U + 1013904223U;
        text += char('a' + (state >> 24) % 26);
    }
    return text;
}

}  // namespace mixed_kv::test
