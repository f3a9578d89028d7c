// test-flash-decoding-custom-op: the op of ggml_op/ in ggml graphs, against libtorch and the double reference
// over a table of shapes and features, or against recorded steps.
#include <cstdio>
#include <exception>
#include <optional>

#include "common/command_line.h"
#include "common/run_tool.h"
#include "mixed_kv/isa.h"
#include "op_check.h"
#include "trace_feed.h"

using namespace mixed_kv;
using namespace mixed_kv::test;

namespace {

struct Options {
    bool list = false, failures_only = false;
    std::string filter;
    FeedOptions feed;
};

int run_table(const Options& options, const std::vector<std::string>& isas) {
    const int n_threads = options.feed.n_threads > 0 ? options.feed.n_threads : 2;
    std::printf("references: double, %s; %d threads\n", trace_tools::torch_text().c_str(), n_threads);
    std::printf("error / tolerance: worst row, 1 is the limit\n");
    std::printf("        kernels  max error  /double  /torch  case\n");
    int n_failed = 0, n_run = 0;
    double worst = 0;
    for (const OpCase& c : all_cases()) {
        if (c.name().find(options.filter) == std::string::npos) continue;
        const OpData data = make_data(c);
        const OpAnswers expected = answers(data);
        for (const std::string& isa : isas) {
            OpFigures f;
            try {
                f = check_op(data, expected, isa, run_op(c, data, isa, n_threads, c.n_kv <= 300 ? 2 : 1));
            } catch (const std::exception& e) {
                f.problem = e.what();
            }
            ++n_run;
            worst = std::max({worst, f.exact_ratio, f.torch_ratio});
            if (!f.problem.empty()) ++n_failed;
            if (options.failures_only && f.problem.empty()) continue;
            std::printf("%-6s  %-7s  %9.2e  %7.3f %7.3f  %s\n", f.problem.empty() ? "ok" : "FAIL",
                        isa.c_str(), f.max_error, f.exact_ratio, f.torch_ratio, c.name().c_str());
            if (!f.problem.empty()) std::printf("        %s\n", f.problem.c_str());
        }
    }
    n_failed += options.filter.empty() ? check_refusals() : 0;
    if (n_run == 0) {
        std::printf("no case matches '%s'\n", options.filter.c_str());
        return 1;
    }
    std::printf("%d of %d checks failed; largest error / tolerance %.3f\n", n_failed, n_run, worst);
    return n_failed == 0 ? 0 : 1;
}

int run(int argc, char** argv) {
    tools::CommandLine command(
        "test-flash-decoding-custom-op",
        "Checks the flash decoding op in ggml graphs against libtorch and a double reference.");
    Options options;
    command.flag("--list", options.list, "List the cases and exit");
    command.flag("--failures-only", options.failures_only, "Print only cases that fail");
    command.option("--filter", options.filter, "Only cases whose name contains this text");
    command
        .option("--from-trace", options.feed.file,
                "Feed the recorded steps of this trace through the op instead")
        .value_name("FILE");
    std::optional<int> threads;
    command.option("--threads", threads, "Threads (default: 2; with --from-trace as recorded)").range(1, 512);
    command.option("--isa", options.feed.isa, "Kernel set (default: all; with --from-trace as recorded)");
    command.flag("--require-exact", options.feed.require_exact, "--from-trace: tolerance is not enough");
    command.flag("--require-cold", options.feed.require_cold, "--from-trace: some pages must be cold");
    if (!command.parse(argc, argv)) return tools::kExitOk;
    if (threads) options.feed.n_threads = *threads;
    if (options.list) {
        for (const OpCase& c : all_cases()) std::printf("%s\n", c.name().c_str());
        return tools::kExitOk;
    }
    if (!options.feed.file.empty()) return feed_trace(options.feed);
    std::vector<std::string> isas;
    if (options.feed.isa.empty()) {
        for (const std::string_view name : supported_isas()) isas.emplace_back(name);
    } else {
        (void)kernel_set(options.feed.isa);  // throws for one that there is not
        isas = {options.feed.isa};
    }
    return run_table(options, isas);
}

}  // namespace

int main(int argc, char** argv) {
    return tools::run_tool("test-flash-decoding-custom-op", [&] { return run(argc, argv); });
}
