// mixed-kv-run: runs a GGUF model on unmodified llama.cpp with the mixed KV cache, beside the F16 cache if
// wanted.

#include <fmt/format.h>
#include <unistd.h>

#include "common/backends.h"
#include "common/llama_log.h"
#include "common/resident_memory.h"
#include "common/run_tool.h"
#include "mixed-kv-run/arguments.h"
#include "mixed-kv-run/generation.h"
#include "mixed-kv-run/output.h"
#include "mixed-kv-run/watch.h"

namespace mixed_kv::tools {

namespace {

// watch: null without --watch.
RunEvents make_events(const RunArguments& arguments, Watch* watch) {
    RunEvents events;
    const bool progress = watch == nullptr && (arguments.verbose || isatty(STDERR_FILENO) == 1);
    const bool in_place = isatty(STDERR_FILENO) == 1 && !arguments.verbose;
    events.on_cache_created = [&arguments](const std::vector<std::string>& lines) {
        for (const std::string& line : lines) {
            fmt::print(stderr, "mixed-kv: {}\n", line);
        }
        // Errors that llama.cpp lived with.
        if (!arguments.verbose) {
            for (const std::string& line : take_logged_errors()) {
                fmt::print(stderr, "{}\n", line);
            }
            set_log_display(LogDisplay::errors);
        }
    };
    events.on_begin = [watch] {
        if (watch != nullptr) watch->begin();
    };
    events.on_end = [watch] {
        if (watch != nullptr) watch->finish();
    };
    events.on_prompt_progress = [progress, in_place, watch](int done, int total) {
        if (watch != nullptr) watch->on_prompt(done, total);
        if (progress) {
            fmt::print(stderr, "{}prompt: {} of {} tokens{}", in_place ? "\r" : "", done, total,
                       in_place && done < total ? "" : "\n");
        }
    };
    events.on_text = [&arguments, watch](const std::string& text) {
        if (watch != nullptr) watch->on_generated();
        if (!arguments.json) {
            write_stdout(text);
            flush_stdout();
        }
    };
    return events;
}

void announce(const RunArguments& arguments, const char* what) {
    if (arguments.compare && !arguments.json) {
        fmt::print(stderr, "--- {}\n", what);
    }
}

void end_text(const RunArguments& arguments, const RunResult& result) {
    if (!arguments.json) {
        write_stdout("\n");
        flush_stdout();
    }
    if (result.context_full) {
        fmt::print(stderr, "mixed-kv-run: stopped: the context of {} tokens is full\n", result.n_ctx);
    }
}

int run(int argc, char** argv) {
    const std::optional<RunArguments> parsed = parse_run_arguments(argc, argv);
    if (!parsed) {
        return kExitOk;
    }
    const RunArguments& arguments = *parsed;
    // While things load, errors are kept: they become part of this program's one line.
    capture_log(arguments.verbose ? LogDisplay::everything : LogDisplay::nothing);
    const BackendPaths paths = find_backend_paths();
    load_backends(paths, arguments.mixed ? PluginUse::load : PluginUse::leave_out);
    std::optional<Plugin> plugin;
    if (arguments.mixed) {
        plugin = Plugin::require(paths);
    }

    announce(arguments, "mixed KV cache");
    RunResult result = [&] {
        std::optional<Watch> watch;
        if (arguments.watch) watch.emplace(*plugin);
        return run_prompt({.arguments = arguments,
                           .owner = plugin ? CacheOwner::plugin : CacheOwner::host,
                           .plugin = plugin ? &*plugin : nullptr},
                          make_events(arguments, watch ? &*watch : nullptr));
    }();
    const RunEvents events = make_events(arguments, nullptr);
    end_text(arguments, result);

    std::optional<RunResult> f16;
    if (arguments.compare) {
        announce(arguments, "llama.cpp's F16 cache");
        if (result.f16_bytes_declared > available_memory_bytes()) {
            throw std::runtime_error(
                fmt::format("--compare: the F16 cache of {} tokens takes {} MiB, {} are available",
                            result.n_ctx, result.f16_bytes_declared >> 20, available_memory_bytes() >> 20));
        }
        RunArguments plain = arguments;
        plain.context.type_k = plain.context.type_v = GGML_TYPE_F16;
        std::uint64_t bytes = 0;
        f16 = run_prompt({.arguments = plain,
                          .owner = CacheOwner::host,
                          .rows_to_measure = result.n_live_rows,
                          .bytes_of_rows = &bytes},
                         events);
        end_text(arguments, *f16);
        result.kv_bytes_f16 = bytes;
        result.kv_bytes_f16_measured = true;
    }

    if (!arguments.json) {
        fmt::print(stderr, "\n{}", summary(result, f16 ? &*f16 : nullptr));
        return kExitOk;
    }
    nlohmann::ordered_json json = to_json(result);
    json["seed"] = arguments.seed;
    json["threads"] = arguments.context.n_threads;
    if (plugin) {
        json["isa"] = plugin->api().isa();
    }
    if (f16) {
        json["f16"] = to_json(*f16);
        const std::optional<std::size_t> difference = first_difference(result, *f16);
        json["first_difference"] =
            difference ? nlohmann::ordered_json(*difference) : nlohmann::ordered_json(nullptr);
    }
    // A generated text may end inside a character.
    write_stdout(json.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n");
    return kExitOk;
}

}  // namespace

}  // namespace mixed_kv::tools

int main(int argc, char** argv) {
    return mixed_kv::tools::run_tool("mixed-kv-run", [&] { return mixed_kv::tools::run(argc, argv); });
}
