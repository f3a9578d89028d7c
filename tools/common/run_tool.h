#pragma once

#include <functional>
#include <stdexcept>
#include <string>
#include <string_view>

namespace mixed_kv::tools {

// Exit statuses of every program.
inline constexpr int kExitOk = 0;
inline constexpr int kExitFailure = 1;
inline constexpr int kExitUsage = 2;

// A mistake in the arguments: exit status 2. What goes wrong later is a std::runtime_error: exit status 1.
class UsageError : public std::runtime_error {
  public:
    using std::runtime_error::runtime_error;
};

// Standard output could not be written: exit status 1.
class OutputError : public std::runtime_error {
  public:
    using std::runtime_error::runtime_error;
};

// Runs a program's body, for main(). Exceptions become one line "<name>: error: ..." on stderr and an exit
// status; `failure` is the one of what is neither a UsageError nor an OutputError. Whatever the body has
// printed, in whatever way, has reached standard output, or that is an error too. A closed pipe is one like
// a full disk: it does not end the process before its files are put in order.
int run_tool(const char* name, const std::function<int()>& body, int failure = kExitFailure);

// Standard output. Both throw OutputError; write_stdout not always at once, since output is buffered.
void write_stdout(std::string_view text);
void flush_stdout();

// Text in one line: line breaks become spaces.
std::string one_line(std::string text);

}  // namespace mixed_kv::tools
