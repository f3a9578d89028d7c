// mixed-kv-bench: speed of attention and of whole models with the mixed KV cache, beside llama.cpp's own
// caches and beside what this machine's memory and arithmetic can do.

#include "bench_scripts.h"
#include "common/run_tool.h"
#include "html/page.h"
#include "mixed-kv-bench/arguments.h"
#include "mixed-kv-bench/attention_bench.h"
#include "mixed-kv-bench/model_bench.h"
#include "mixed-kv-bench/plot.h"
#include "mixed-kv-bench/prompt_bench.h"
#include "mixed-kv-bench/report.h"
#include "mixed-kv-bench/report_parts.h"
#include "trace/output_file.h"

namespace mixed_kv::tools {

namespace {

template <typename Report>
void print(const Report& report, OutputFormat format) {
    switch (format) {
        case OutputFormat::json:
            write_stdout(dumped(to_json(report), 2) + "\n");
            break;
        case OutputFormat::csv:
            write_stdout(to_csv(report));
            break;
        case OutputFormat::text:
        case OutputFormat::markdown:
            write_stdout(to_table(report, format == OutputFormat::markdown));
            break;
    }
    flush_stdout();  // page and plot come after it
}

int run(int argc, char** argv) {
    const std::optional<BenchArguments> arguments = parse_bench_arguments(argc, argv);
    if (!arguments) return kExitOk;
    // Files come last: where one cannot be written, the report is there.
    const auto print_and_show = [&](const auto& report) {
        print(report, arguments->output);
        if (!arguments->html.empty()) {
            trace::write_output_file(arguments->html, report_page("Speed", kBenchScripts, to_json(report)));
        }
    };
    const auto print_and_plot = [&](const auto& report) {
        print_and_show(report);
        if (!arguments->svg.empty()) trace::write_output_file(arguments->svg, plot_svg(report));
    };
    if (arguments->mode == BenchMode::model) {
        print_and_plot(run_model_bench(*arguments));
    } else if (arguments->mode == BenchMode::prompt) {
        print_and_plot(run_prompt_bench(*arguments));
    } else {
        print_and_show(run_attention_bench(*arguments));
    }
    return kExitOk;
}

}  // namespace

}  // namespace mixed_kv::tools

int main(int argc, char** argv) {
    return mixed_kv::tools::run_tool("mixed-kv-bench", [&] { return mixed_kv::tools::run(argc, argv); });
}
