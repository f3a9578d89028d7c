// kqv-trace-monitor: runs a GGUF model on unmodified llama.cpp and records the inputs and the output of every
// attention op.

#include <fmt/format.h>

#include <optional>

#include "common/backends.h"
#include "common/llama_log.h"
#include "common/plugin.h"
#include "common/run_tool.h"
#include "kqv-trace-monitor/arguments.h"
#include "kqv-trace-monitor/session.h"

namespace mixed_kv::tools {

namespace {

int run(int argc, char** argv) {
    const std::optional<MonitorArguments> arguments = parse_monitor_arguments(argc, argv);
    if (!arguments) return kExitOk;
    capture_log(arguments->verbose ? LogDisplay::everything : LogDisplay::nothing);
    const BackendPaths paths = find_backend_paths();
    load_backends(paths, arguments->mixed ? PluginUse::load : PluginUse::leave_out);
    std::optional<Plugin> plugin;
    if (arguments->mixed) plugin = Plugin::require(paths);
    const SessionResult result = run_session(*arguments, plugin ? &*plugin : nullptr);
    std::string tokens;
    for (const llama_token token : result.tokens) tokens += " " + std::to_string(token);
    write_stdout(fmt::format("tokens:{}\n", tokens));
    return kExitOk;
}

}  // namespace

}  // namespace mixed_kv::tools

int main(int argc, char** argv) {
    return mixed_kv::tools::run_tool("kqv-trace-monitor", [&] { return mixed_kv::tools::run(argc, argv); });
}
