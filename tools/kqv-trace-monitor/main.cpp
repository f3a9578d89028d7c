// kqv-trace-monitor: runs a GGUF model on unmodified llama.cpp and records the inputs and the output of every
// attention op.

#include <fmt/format.h>

#include <cstdio>
#include <optional>

#include "common/backends.h"
#include "common/command_line.h"
#include "common/llama_log.h"
#include "common/plugin.h"
#include "kqv-trace-monitor/arguments.h"
#include "kqv-trace-monitor/session.h"

namespace mixed_kv::tools {

namespace {

// The plugin's own words for why it is not there, or the loader's.
[[noreturn]] void throw_plugin_missing(const BackendPaths& paths) {
    std::vector<std::string> said = take_plugin_lines();
    for (std::string& line : take_logged_errors()) said.push_back(std::move(line));
    if (paths.plugin.empty()) {
        throw std::runtime_error(
            "no libggml-mixed-kv.so beside this program, and GGML_BACKEND_PATH is not set");
    }
    throw std::runtime_error("the plugin " + paths.plugin + " was not loaded" +
                             (said.empty() ? "" : ": " + said.front()) + " (mixed-kv-doctor says more)");
}

int run(int argc, char** argv) {
    const std::optional<MonitorArguments> arguments = parse_monitor_arguments(argc, argv);
    if (!arguments) return kExitOk;
    capture_log(arguments->verbose ? LogDisplay::everything : LogDisplay::nothing);
    const BackendPaths paths = find_backend_paths();
    load_backends(paths, arguments->mixed ? PluginUse::load : PluginUse::leave_out);
    std::optional<Plugin> plugin;
    if (arguments->mixed) {
        plugin = Plugin::find();
        if (!plugin) throw_plugin_missing(paths);
    }
    const SessionResult result = run_session(*arguments, plugin ? &*plugin : nullptr);
    std::string tokens;
    for (const llama_token token : result.tokens) tokens += " " + std::to_string(token);
    fmt::print("tokens:{}\n", tokens);
    if (std::fflush(stdout) != 0) throw std::runtime_error("cannot write to standard output");
    return kExitOk;
}

}  // namespace

}  // namespace mixed_kv::tools

int main(int argc, char** argv) {
    return mixed_kv::tools::run_tool("kqv-trace-monitor", [&] { return mixed_kv::tools::run(argc, argv); });
}
