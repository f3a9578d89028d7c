#include "common/run_tool.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <exception>
#include <new>

namespace mixed_kv::tools {

namespace {

[[noreturn]] void throw_output_error(int error) {
    throw OutputError(std::string("cannot write to standard output") +
                      (error != 0 ? std::string(": ") + std::strerror(error) : ""));
}

// A program started without standard streams would get their numbers for the files that it opens, and print
// into these. What is opened for reading only makes printing fail, as it should.
void occupy_standard_streams() {
    for (int stream = STDIN_FILENO; stream <= STDERR_FILENO; ++stream) {
        if (fcntl(stream, F_GETFD) < 0 && errno == EBADF) (void)open("/dev/null", O_RDONLY);
    }
}

}  // namespace

void write_stdout(std::string_view text) {
    if (std::fwrite(text.data(), 1, text.size(), stdout) != text.size()) throw_output_error(errno);
}

void flush_stdout() {
    const int error = std::fflush(stdout) != 0 ? errno : 0;
    if (error != 0 || std::ferror(stdout) != 0) throw_output_error(error);
}

std::string one_line(std::string text) {
    while (!text.empty() && (text.back() == '\n' || text.back() == ' ')) {
        text.pop_back();
    }
    for (char& c : text) {
        if (c == '\n' || c == '\r') {
            c = ' ';
        }
    }
    return text;
}

int run_tool(const char* name, const std::function<int()>& body, int failure) {
    occupy_standard_streams();
    std::signal(SIGPIPE, SIG_IGN);
    const auto say = [name](const std::string& what) {
        std::fflush(stdout);
        std::fprintf(stderr, "%s: error: %s\n", name, one_line(what).c_str());
    };
    try {
        const int status = body();
        flush_stdout();
        return status;
    } catch (const UsageError& error) {
        say(error.what());
        return kExitUsage;
    } catch (const OutputError& error) {
        say(error.what());
        return kExitFailure;
    } catch (const std::bad_alloc&) {
        say("out of memory");
    } catch (const std::exception& error) {
        say(error.what());
    }
    return failure;
}

}  // namespace mixed_kv::tools
