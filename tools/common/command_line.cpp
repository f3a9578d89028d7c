#include "common/command_line.h"

#include <cstdlib>
#include <exception>
#include <new>

#include "mixed_kv/settings.h"

namespace mixed_kv::tools {

std::optional<int> parse_command_line(CLI::App& app, int argc, char** argv,
                                      const std::vector<Alias>& aliases) {
    std::vector<std::string> arguments;  // CLI11 takes them last first
    for (int i = argc - 1; i >= 1; i--) {
        std::string argument = argv[i];
        const std::string before = i > 1 ? argv[i - 1] : "";
        // A prompt may look like anything.
        if (before != "-p" && before != "--prompt") {
            for (const Alias& alias : aliases) {
                if (argument == alias.short_name) {
                    argument = alias.long_name;
                }
            }
        }
        arguments.push_back(std::move(argument));
    }
    try {
        app.parse(arguments);
    } catch (const CLI::Success& success) {  // --help
        return app.exit(success);
    } catch (const CLI::ParseError& error) {
        throw UsageError(std::string(error.what()) + " (--help lists the options)");
    }
    return std::nullopt;
}

void CacheOptions::add_to(CLI::App& app) {
    constexpr const char* kGroup = "Mixed KV cache";
    app.add_option("--kv-window", window_, "Newest rows of each sequence kept in FP16 (GGML_MIXED_KV_WINDOW)")
        ->type_name("ROWS")
        ->group(kGroup);
    app.add_option("--kv-sinks", sinks_, "First rows of each sequence kept in FP16 (GGML_MIXED_KV_SINKS)")
        ->type_name("ROWS")
        ->group(kGroup);
    std::string formats = "f16";
    for (const ColdFormat& format : cold_formats()) {
        formats += ' ';
        formats += format.name;
    }
    app.add_option("--kv-k", key_format_, "Format of older K rows: " + formats + " (GGML_MIXED_KV_K)")
        ->type_name("FORMAT")
        ->group(kGroup);
    app.add_option("--kv-v", value_format_, "Format of older V rows (GGML_MIXED_KV_V)")
        ->type_name("FORMAT")
        ->group(kGroup);
}

void CacheOptions::export_and_check() const {
    const auto set = [](const char* variable, const std::optional<std::string>& value) {
        if (value) {
            setenv(variable, value->c_str(), 1);
        }
    };
    set("GGML_MIXED_KV_WINDOW", window_);
    set("GGML_MIXED_KV_SINKS", sinks_);
    set("GGML_MIXED_KV_K", key_format_);
    set("GGML_MIXED_KV_V", value_format_);
    (void)Settings::from_environment();
}

std::string one_line(std::string text) {
    while (!text.empty() && (text.back() == '\n' || text.back() == ' ')) {
        text.pop_back();
    }
    for (char& c : text) {
        if (c == '\n' || c == '\r') {
            c = ' ';
        }
    }
    return text;
}

int run_tool(const char* name, const std::function<int()>& body) {
    const auto say = [name](const std::string& what) {
        std::fflush(stdout);
        std::fprintf(stderr, "%s: error: %s\n", name, one_line(what).c_str());
    };
    try {
        return body();
    } catch (const UsageError& error) {
        say(error.what());
        return kExitUsage;
    } catch (const std::bad_alloc&) {
        say("out of memory");
    } catch (const std::exception& error) {
        say(error.what());
    }
    return kExitFailure;
}

}  // namespace mixed_kv::tools
