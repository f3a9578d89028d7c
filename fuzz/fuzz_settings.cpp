// libFuzzer harness for the settings: lines of NAME=value stand for the environment. Whatever they are, the
// outcome is settings within their documented bounds or mixed_kv::Error, whose text is one line.
//
//   build-fuzz/bin/fuzz_settings -dict=fuzz/settings.dict -max_len=512 WORK_FOLDER fuzz/corpus/settings

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <map>
#include <optional>
#include <string>
#include <string_view>

#include "mixed_kv/error.h"
#include "mixed_kv/settings.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    std::map<std::string, std::string> variables;
    std::string_view text(reinterpret_cast<const char*>(data), size);
    while (!text.empty()) {
        const auto end = text.find('\n');
        const std::string_view line = text.substr(0, end);
        const auto equals = line.find('=');
        if (equals != std::string_view::npos) {
            // Values end at a NUL, as in an environment.
            variables["GGML_MIXED_KV_" + std::string(line.substr(0, equals))] =
                std::string(line.substr(equals + 1)).c_str();
        }
        text = end == std::string_view::npos ? std::string_view() : text.substr(end + 1);
    }
    try {
        const auto settings =
            mixed_kv::Settings::from_environment([&](const char* name) -> std::optional<std::string> {
                const auto found = variables.find(name);
                return found == variables.end() ? std::nullopt : std::optional(found->second);
            });
        if (settings.window < 0 || settings.window > 1 << 20 || settings.sinks < 0 ||
            settings.sinks > 1 << 16 || settings.verbose < 0 || settings.verbose > 2 || settings.limit_mb < 0)
            std::abort();
    } catch (const mixed_kv::Error& e) {
        if (std::string_view(e.what()).find('\n') != std::string_view::npos) std::abort();
    }
    return 0;
}
