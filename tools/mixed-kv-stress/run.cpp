#include "mixed-kv-stress/run.h"

#include <fmt/format.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <nlohmann/json.hpp>
#include <optional>

#include "common/backends.h"
#include "common/llama_handles.h"
#include "common/llama_log.h"
#include "common/plugin.h"
#include "mixed-kv-stress/executor.h"

namespace mixed_kv::tools {

namespace {

// A model that writes to the pipe line by line, so that what a crashed child did is known.
class Pipe {
  public:
    explicit Pipe(int fd) : fd_(fd) {}
    void line(const std::string& text) const {
        const std::string whole = text + '\n';
        for (std::size_t at = 0; at < whole.size();) {
            const ssize_t n = write(fd_, whole.data() + at, whole.size() - at);
            if (n <= 0) _exit(3);
            at += std::size_t(n);
        }
    }

  private:
    int fd_;
};

void run_here(const RunOptions& options, const std::vector<Op>& ops, bool log, const Pipe& out) {
    capture_log(LogDisplay::nothing);
    const BackendPaths paths = find_backend_paths();
    load_backends(paths, PluginUse::load);
    const Plugin plugin = Plugin::require(paths);
    const ModelHandle host = load_model({.path = options.model, .owner = CacheOwner::host});
    const ModelHandle ours =
        load_model({.path = options.model, .owner = CacheOwner::plugin, .plugin_device = plugin.device()});
    const Subject subject{host.get(),
                          ours.get(),
                          &plugin.api(),
                          options.n_layer,
                          options.attention_sigma,
                          options.has_values,
                          options.sliding_window};
    Figures figures;
    std::string failure;
    std::size_t done = 0;
    try {
        Executor executor(subject, options, figures);
        for (; done < ops.size() && failure.empty(); ++done) {
            if (log) out.line(fmt::format("O{} {}", done, operation_info(ops[done].kind).name));
            try {
                executor.apply(ops[done]);
                if (int(done) == options.plant) executor.plant_fault();
            } catch (const Mismatch& e) {
                failure =
                    fmt::format("operation {} ({}): {}", done, operation_info(ops[done].kind).name, e.what());
            }
            const auto lines = executor.take_log();
            if (log) {
                for (const std::string& line : lines) out.line("L" + line);
            }
            out.line(fmt::format("D{}", done));
            if (!failure.empty()) break;
        }
    } catch (const Mismatch& e) {
        failure = e.what();
    }
    const nlohmann::json result{{"failure", failure},
                                {"comparisons", figures.comparisons},
                                {"fresh", figures.fresh_comparisons},
                                {"rows", figures.row_comparisons},
                                {"own", figures.own_comparisons},
                                {"kept_rows", figures.kept_rows},
                                {"max_nmse", figures.max_nmse},
                                {"max_nmse_exact", figures.max_nmse_exact},
                                {"max_nmse_own", figures.max_nmse_own},
                                {"max_share", figures.max_share},
                                {"max_row_share", figures.max_row_share}};
    out.line("R" + result.dump());
}

// Whatever goes wrong in there must not run this process's destructors.
[[noreturn]] void child(const RunOptions& options, const std::vector<Op>& ops, bool log, int fd) {
    const Pipe out(fd);
    setenv("GGML_NO_BACKTRACE", "1", 1);  // an abort is reported by what led to it, and quickly
    try {
        run_here(options, ops, log, out);
        std::fflush(nullptr);
        _exit(0);
    } catch (const std::exception& e) {
        out.line(std::string("E") + e.what());
        _exit(4);
    }
}

void read_line(const std::string& line, RunResult& result, bool& finished) {
    if (line.empty()) return;
    const std::string rest = line.substr(1);
    switch (line[0]) {
        case 'O':
            result.log.push_back("operation " + rest);
            break;
        case 'L':
            result.log.push_back(rest);
            break;
        case 'D':
            result.ops_done = std::stoul(rest) + 1;
            break;
        case 'E':
            result.failure = rest;
            break;
        case 'R': {
            const auto json = nlohmann::json::parse(rest);
            const auto number = [&](const char* key) {
                return json.at(key).is_null() ? HUGE_VAL : json.at(key).get<double>();
            };
            result.failure = json.at("failure");
            Figures& f = result.figures;
            f.comparisons = json.at("comparisons");
            f.fresh_comparisons = json.at("fresh");
            f.row_comparisons = json.at("rows");
            f.own_comparisons = json.at("own");
            f.kept_rows = json.at("kept_rows");
            f.max_nmse = number("max_nmse");
            f.max_nmse_exact = number("max_nmse_exact");
            f.max_nmse_own = number("max_nmse_own");
            f.max_share = number("max_share");
            f.max_row_share = number("max_row_share");
            finished = true;
            break;
        }
        default:
            break;
    }
}

}  // namespace

RunResult run_in_child(const RunOptions& options, const std::vector<Op>& ops, bool log) {
    RunResult result;
    int fds[2];
    if (pipe(fds) != 0) throw std::runtime_error(std::string("no pipe: ") + std::strerror(errno));
    std::fflush(nullptr);
    const pid_t pid = fork();
    if (pid < 0) throw std::runtime_error(std::string("no process: ") + std::strerror(errno));
    if (pid == 0) {
        close(fds[0]);
        child(options, ops, log, fds[1]);
    }
    close(fds[1]);
    bool finished = false;
    std::string pending;
    char buffer[4096];
    for (ssize_t n = 0; (n = read(fds[0], buffer, sizeof buffer)) > 0;) {
        pending.append(buffer, std::size_t(n));
        for (std::size_t end = 0; (end = pending.find('\n')) != std::string::npos; pending.erase(0, end + 1))
            read_line(pending.substr(0, end), result, finished);
    }
    close(fds[0]);
    int status = 0;
    waitpid(pid, &status, 0);
    if (WIFSIGNALED(status)) {
        result.failure = fmt::format("the process ended by signal {} ({}) in operation {}", WTERMSIG(status),
                                     strsignal(WTERMSIG(status)), result.ops_done);
    } else if (result.failure.empty() && (!finished || WEXITSTATUS(status) != 0)) {
        result.failure = fmt::format("the process ended with status {}", WEXITSTATUS(status));
    }
    result.ok = result.failure.empty();
    return result;
}

std::vector<Op> shrink(const RunOptions& options, std::vector<Op> ops, std::size_t failed_at, int max_runs) {
    ops.resize(std::min(ops.size(), failed_at + 1));
    // Pieces of halving size are taken out as long as the rest still fails.
    for (std::size_t piece = ops.size() / 2; piece > 0 && max_runs > 0; piece /= 2) {
        for (std::size_t at = 0; at < ops.size() && max_runs > 0;) {
            std::vector<Op> fewer = ops;
            const std::size_t n = std::min(piece, ops.size() - at);
            fewer.erase(fewer.begin() + std::ptrdiff_t(at), fewer.begin() + std::ptrdiff_t(at + n));
            --max_runs;
            const RunResult result =
                fewer.empty() ? RunResult{true, 0, {}, {}, {}} : run_in_child(options, fewer, false);
            if (result.ok) {
                at += n;
            } else {
                fewer.resize(std::min(fewer.size(), result.ops_done + 1));
                ops = std::move(fewer);
            }
        }
    }
    return ops;
}

}  // namespace mixed_kv::tools
