// mixed-kv-stress: random sequences of what llama.cpp does with cache cells, through its public API, on the
// plugin's cache and on the host's own side by side.

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "common/command_line.h"
#include "common/run_tool.h"
#include "mixed-kv-stress/run.h"
#include "random_model.h"

namespace mixed_kv::tools {

namespace {

struct Arguments {
    std::size_t n_ops = 2000;
    std::uint64_t seed = 1;
    int n_seeds = 1, n_contexts = 3, n_threads = 1, plant = -1, shrink_runs = 200;
    std::string architecture = "mix";
    std::vector<std::string> only;
    bool budget = false, json = false, list = false, verbose = false;
};

// A random-weight model so small that a step takes well under a millisecond, written for the run.
class TinyModel {
  public:
    explicit TinyModel(const std::string& architecture) {
        test::RandomModelSpec spec = test::random_model_spec(architecture);
        spec.n_vocab = 320;
        spec.n_layer = 2;
        spec.n_embd = 64;
        spec.n_ff = 64;
        if (architecture == "llama") spec.n_head = 4, spec.n_head_kv = 2, spec.head_dim = 32;
        if (architecture == "mpt") spec.n_head = spec.n_head_kv = 2, spec.head_dim = 32;
        if (architecture == "gemma2") spec.n_head = 2, spec.n_head_kv = 1, spec.head_dim = 40;
        if (architecture == "deepseek2") spec.n_head = 2;
        path_ = fmt::format("{}/mixed-kv-stress-{}-{}.gguf",
                            std::getenv("TMPDIR") != nullptr ? std::getenv("TMPDIR") : "/tmp", getpid(),
                            architecture);
        test::write_random_model(spec, path_);
        options_.model = path_;
        options_.n_layer = int(spec.n_layer);
        options_.attention_sigma = double(spec.attention_sigma);
        options_.has_values = architecture != "deepseek2";
        options_.sliding_window = spec.n_swa > 0;
    }
    ~TinyModel() { std::remove(path_.c_str()); }
    TinyModel(const TinyModel&) = delete;
    TinyModel& operator=(const TinyModel&) = delete;

    const RunOptions& options() const { return options_; }

  private:
    std::string path_;
    RunOptions options_;
};

// "mix": most seeds run plain attention, the others ALiBi, a sliding window, and MLA.
std::string architecture_of(const Arguments& arguments, std::uint64_t seed) {
    if (arguments.architecture != "mix") return arguments.architecture;
    constexpr const char* kTurns[] = {"llama", "llama", "gemma2", "llama",
                                      "mpt",   "llama", "llama",  "deepseek2"};
    return kTurns[seed % std::size(kTurns)];
}

std::optional<Arguments> parse(int argc, char** argv) {
    Arguments a;
    CommandLine command(
        "mixed-kv-stress",
        "Random operations on the plugin's cache and on llama.cpp's own side by side; exit status 0 "
        "only when all agree");
    command.option("--ops", a.n_ops, "operations in all").at_least(1);
    command.option("--seed", a.seed, "of the first run");
    command.option("--seeds", a.n_seeds, "runs with consecutive seeds that share the operations").at_least(1);
    command.option("--contexts", a.n_contexts, "pairs of contexts alive at once").range(1, 16);
    command.option("-t,--threads", a.n_threads, "threads of each context").range(1, 64);
    command.option("--arch", a.architecture, "shape of the model")
        .one_of({"mix", "llama", "gemma2", "mpt", "deepseek2"});
    command.option("--only", a.only, "draw these operations only (comma-separated)");
    command.option("--plant", a.plant,
                   "after this operation overwrite rows of the plugin's cache: the run must fail");
    command.option("--shrink-runs", a.shrink_runs, "runs spent on making a failing sequence shorter")
        .at_least(0);
    command.flag("--budget", a.budget,
                 "every cache has a budget, so small that pages step down all the time");
    command.flag("--json", a.json, "one JSON object on stdout");
    command.flag("--list", a.list, "name the operations and exit");
    command.flag("--verbose", a.verbose, "say every step");
    if (!command.parse(argc, argv)) return std::nullopt;
    return a;
}

void add_up(Figures& sum, const Figures& f) {
    sum.comparisons += f.comparisons;
    sum.fresh_comparisons += f.fresh_comparisons;
    sum.row_comparisons += f.row_comparisons;
    sum.own_comparisons += f.own_comparisons;
    sum.kept_rows += f.kept_rows;
    sum.max_nmse = std::max(sum.max_nmse, f.max_nmse);
    sum.max_nmse_exact = std::max(sum.max_nmse_exact, f.max_nmse_exact);
    sum.max_nmse_own = std::max(sum.max_nmse_own, f.max_nmse_own);
    sum.max_share = std::max(sum.max_share, f.max_share);
    sum.max_row_share = std::max(sum.max_row_share, f.max_row_share);
}

// The shortest failing sequence, in words, on stderr.
std::vector<std::string> explain(const RunOptions& options, const std::vector<Op>& ops,
                                 const RunResult& failed, int shrink_runs) {
    const std::vector<Op> few = shrink(options, ops, failed.ops_done, shrink_runs);
    const RunResult again = run_in_child(options, few, true);
    fmt::print(stderr, "seed {} fails: {}\nshortest failing sequence found ({} operations):\n", options.seed,
               failed.failure, few.size());
    for (const std::string& line : again.log) fmt::print(stderr, "{}\n", line);
    fmt::print(stderr, "{}\n", again.failure);
    return again.log;
}

int run(int argc, char** argv) {
    const std::optional<Arguments> parsed = parse(argc, argv);
    if (!parsed) return kExitOk;
    const Arguments& arguments = *parsed;
    if (arguments.list) {
        for (const OpInfo& info : all_operations())
            write_stdout(fmt::format("{:<18}{}\n", info.name, info.description));
        return kExitOk;
    }
    nlohmann::ordered_json failures = nlohmann::ordered_json::array();
    Figures sum;
    std::size_t done = 0;
    const auto n_seeds = std::size_t(arguments.n_seeds);
    for (std::size_t i = 0; i < n_seeds; ++i) {
        const std::uint64_t seed = arguments.seed + i;
        const std::size_t n = arguments.n_ops * (i + 1) / n_seeds - arguments.n_ops * i / n_seeds;
        if (n == 0) continue;
        const std::string architecture = architecture_of(arguments, seed);
        const TinyModel model(architecture);
        RunOptions options = model.options();
        options.seed = seed;
        options.n_pairs = arguments.n_contexts;
        options.n_threads = arguments.n_threads;
        options.plant = arguments.plant;
        options.with_budget = arguments.budget;
        std::vector<Op> ops;
        try {
            ops = random_operations(seed, n, arguments.only);
        } catch (const std::invalid_argument& e) {
            throw UsageError(e.what());
        }
        const RunResult result = run_in_child(options, ops, arguments.verbose);
        for (const std::string& line : result.log) fmt::print(stderr, "{}\n", line);
        add_up(sum, result.figures);
        done += result.ops_done;
        fmt::print(stderr,
                   "seed {} ({}): {} operations, {} comparisons of logits, {} of rows, {} with a fresh "
                   "context, {} with the host over our rows, {} kept rows, {}\n",
                   seed, architecture, result.ops_done, result.figures.comparisons,
                   result.figures.row_comparisons, result.figures.fresh_comparisons,
                   result.figures.own_comparisons, result.figures.kept_rows, result.ok ? "passed" : "FAILED");
        if (result.ok) continue;
        const auto steps = explain(options, ops, result, arguments.shrink_runs);
        failures.push_back(
            {{"seed", seed}, {"architecture", architecture}, {"what", result.failure}, {"steps", steps}});
    }
    const bool pass = failures.empty();
    if (arguments.json) {
        nlohmann::ordered_json json;
        json["ops"] = done;
        json["pass"] = pass;
        json["failures"] = failures;
        json["max_nmse"] = sum.max_nmse;
        json["max_nmse_exact"] = sum.max_nmse_exact;
        json["max_nmse_own_rows"] = sum.max_nmse_own;
        json["max_share_of_bound"] = sum.max_share;
        json["max_share_of_row_bound"] = sum.max_row_share;
        json["comparisons"] = sum.comparisons;
        json["row_comparisons"] = sum.row_comparisons;
        json["fresh_comparisons"] = sum.fresh_comparisons;
        json["own_rows_comparisons"] = sum.own_comparisons;
        json["kept_rows"] = sum.kept_rows;
        json["seed"] = arguments.seed;
        json["seeds"] = arguments.n_seeds;
        write_stdout(json.dump(2) + "\n");
    } else {
        write_stdout(
            fmt::format("{} operations, {}; largest NMSE {:.3g} (exact storage: {:.3g}; over our own rows: "
                        "{:.3g}), {:.2g} of "
                        "the bound\n",
                        done, pass ? "all passed" : fmt::format("{} seed(s) failed", failures.size()),
                        sum.max_nmse, sum.max_nmse_exact, sum.max_nmse_own, sum.max_share));
    }
    return pass ? kExitOk : kExitFailure;
}

}  // namespace

}  // namespace mixed_kv::tools

int main(int argc, char** argv) {
    return mixed_kv::tools::run_tool("mixed-kv-stress", [&] { return mixed_kv::tools::run(argc, argv); });
}
