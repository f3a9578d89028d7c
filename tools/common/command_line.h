#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <optional>
#include <string>
#include <vector>

namespace mixed_kv::tools {

// Exit statuses of every tool.
inline constexpr int kExitOk = 0;
inline constexpr int kExitFailure = 1;
inline constexpr int kExitUsage = 2;

// A mistake in the arguments: exit status 2. What goes wrong later is a std::runtime_error: exit status 1.
class UsageError : public std::runtime_error {
  public:
    using std::runtime_error::runtime_error;
};

// Parses argv. llama.cpp's options of several letters after one dash (-ctk, -ngl) reach CLI11, which has no
// such thing, as the long names given in `aliases`. Throws UsageError; --help prints and returns kExitOk, and
// the caller leaves with it.
struct Alias {
    const char* short_name;
    const char* long_name;
};
std::optional<int> parse_command_line(CLI::App& app, int argc, char** argv,
                                      const std::vector<Alias>& aliases);

// The settings of the cache as options: --kv-preset, --kv-window, --kv-k, .... They become the environment
// variables that the plugin reads, so an option beats a variable that is set already.
class CacheOptions {
  public:
    void add_to(CLI::App& app);
    // Call before the plugin is loaded. Throws mixed_kv::Error when a setting is wrong, wherever it comes
    // from.
    void export_and_check() const;

  private:
    std::optional<std::string> preset_, window_, sinks_, key_format_, value_format_, layers_, bits_,
        calibration_;
};

// Runs a tool's body. Exceptions become one line "<tool>: error: ..." on stderr and an exit status.
int run_tool(const char* name, const std::function<int()>& body);

// Text in one line: line breaks become spaces.
std::string one_line(std::string text);

}  // namespace mixed_kv::tools
