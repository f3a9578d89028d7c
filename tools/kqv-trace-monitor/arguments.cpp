#include "kqv-trace-monitor/arguments.h"

#include <filesystem>

#include "common/run_tool.h"

namespace mixed_kv::tools {

namespace {

std::string quoted_command_line(int argc, char** argv) {
    std::string line;
    for (int i = 0; i < argc; ++i) {
        const std::string argument = i == 0 ? std::filesystem::path(argv[0]).filename().string() : argv[i];
        const bool plain =
            !argument.empty() && argument.find_first_of(" \t\n'\"\\$&|;<>()*?`") == std::string::npos;
        line += (i > 0 ? " " : "") + (plain ? argument : "'" + argument + "'");
    }
    return line;
}

}  // namespace

std::optional<MonitorArguments> parse_monitor_arguments(int argc, char** argv) {
    MonitorArguments m;
    m.n_predict = 16;
    GenerationOptions generation;
    bool no_sources = false;

    CommandLine command(
        "kqv-trace-monitor",
        "Runs a GGUF model on llama.cpp and records its attention, op by op, to a trace file. Every "
        "ubatch is a step of the trace.");
    generation.add_to(command, m, "with --mixed-kv-cache the layers whose cache is mixed; 0 and -1: all");
    command.option("--layer", m.layer, "Layer to record; -1: all").at_least(-1);
    command.flag("--mixed-kv-cache", m.mixed, "Use the mixed KV cache; without it llama.cpp's own is traced");
    command.option("--save-gguf", m.save_gguf, "Trace file to write").value_name("FILE");
    command.flag("--no-trace-sources", no_sources, "Record kqv_out alone");
    command.flag(
        "--keep-originals", m.keep_originals,
        "Also record K and V as they were written, F16, to tell quantization error from the kernel's");
    command.option("--max-steps", m.max_steps, "Record this many steps at most; -1: all, 0: none")
        .at_least(-1);
    command.flag("--compact", m.compact, "Store each version of a row or block once; for long runs");
    command.option("--save-logits", m.save_logits, "Write each step's logits, float32, to compare runs")
        .value_name("FILE");
    command.flag("-q,--quiet", m.quiet, "No tables, no progress");
    command.flag("-v,--verbose", m.verbose, "Show each tensor's views, and llama.cpp's log");
    if (!command.parse(argc, argv)) return std::nullopt;

    if (no_sources && m.keep_originals) {
        throw UsageError("--keep-originals records sources, which --no-trace-sources leaves out");
    }
    if (m.quiet && m.verbose) throw UsageError("-q and -v exclude each other");
    generation.finish(m);
    m.sources = !no_sources;
    // Idle workers of a pool that spins would only get into the way of reading and writing.
    m.context.polling_pool = false;
    m.command_line = quoted_command_line(argc, argv);
    return m;
}

}  // namespace mixed_kv::tools
