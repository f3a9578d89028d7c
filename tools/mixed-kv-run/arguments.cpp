#include "mixed-kv-run/arguments.h"

#include "common/run_tool.h"

namespace mixed_kv::tools {

std::optional<RunArguments> parse_run_arguments(int argc, char** argv) {
    RunArguments run;
    GenerationOptions generation;
    bool no_mixed = false, no_pool = false, no_warm_up = false;

    CommandLine command("mixed-kv-run", "Runs a GGUF model on llama.cpp with a mixed-precision KV cache.");
    generation.add_to(command, run, "layers whose cache is mixed; -1: all");
    command.flag("--compare", run.compare, "Run llama.cpp's own F16 cache too and show both");
    command.flag("--json", run.json, "Print one JSON object instead of text");
    command.flag("--no-mixed", no_mixed, "Run llama.cpp's own cache only, without the plugin");
    command.flag("--ignore-eos", run.ignore_eos, "Go on after the model has ended its text");
    command.flag("--no-warmup", no_warm_up, "Do not touch the weights before measuring");
    command.flag("--no-threadpool", no_pool, "Attach no thread pool, as simple clients of libllama");
    command.flag("--watch", run.watch,
                 "Show while it runs: pages hot and cold by layer, memory, tokens per second");
    command.flag("-v,--verbose", run.verbose, "Show llama.cpp's log");
    if (!command.parse(argc, argv)) {
        return std::nullopt;
    }
    if (no_mixed && run.compare) {
        throw UsageError("--compare needs the mixed cache, which --no-mixed leaves out");
    }
    if (no_mixed && run.watch) {
        throw UsageError("--watch shows the mixed cache, which --no-mixed leaves out");
    }
    if (run.watch && run.verbose) {
        throw UsageError("--watch and -v both write to standard error; give one of them");
    }
    generation.finish(run);
    run.mixed = !no_mixed;
    run.warm_up = !no_warm_up;
    run.context.polling_pool = !no_pool;
    return run;
}

}  // namespace mixed_kv::tools
