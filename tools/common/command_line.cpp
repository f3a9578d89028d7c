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
    std::string names;
    for (const Preset& preset : presets()) {
        names += names.empty() ? "" : " ";
        names += preset.name;
    }
    app.add_option("--kv-preset", preset_,
                   "What the options below are without being given: " + names + " (GGML_MIXED_KV)")
        ->type_name("NAME")
        ->group(kGroup);
    app.add_option("--kv-window", window_, "Newest rows of each sequence kept in FP16 (GGML_MIXED_KV_WINDOW)")
        ->type_name("ROWS")
        ->group(kGroup);
    app.add_option("--kv-sinks", sinks_, "First rows of each sequence kept in FP16 (GGML_MIXED_KV_SINKS)")
        ->type_name("ROWS")
        ->group(kGroup);
    app.add_option("--kv-k", key_format_, "Format of older K rows: " + format_names() + " (GGML_MIXED_KV_K)")
        ->type_name("FORMAT")
        ->group(kGroup);
    app.add_option("--kv-v", value_format_, "Format of older V rows (GGML_MIXED_KV_V)")
        ->type_name("FORMAT")
        ->group(kGroup);
    app.add_option("--kv-layers", layers_,
                   "Other formats for some layers, such as 0-1,-2--1:q8 (GGML_MIXED_KV_LAYERS)")
        ->type_name("RULES")
        ->group(kGroup);
    app.add_option("--kv-bits", bits_,
                   "Formats by layer within this many bits per value; needs --kv-calibration "
                   "(GGML_MIXED_KV_BITS)")
        ->type_name("NUMBER")
        ->group(kGroup);
    app.add_option("--kv-calibration", calibration_,
                   "What mixed-kv-eval --calibrate found about the model (GGML_MIXED_KV_CALIBRATION)")
        ->type_name("FILE")
        ->group(kGroup);
}

void CacheOptions::export_and_check() const {
    const auto set = [](const char* variable, const std::optional<std::string>& value) {
        if (value) {
            setenv(variable, value->c_str(), 1);
        }
    };
    set("GGML_MIXED_KV", preset_);
    set("GGML_MIXED_KV_WINDOW", window_);
    set("GGML_MIXED_KV_SINKS", sinks_);
    set("GGML_MIXED_KV_K", key_format_);
    set("GGML_MIXED_KV_V", value_format_);
    set("GGML_MIXED_KV_LAYERS", layers_);
    set("GGML_MIXED_KV_BITS", bits_);
    set("GGML_MIXED_KV_CALIBRATION", calibration_);
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
