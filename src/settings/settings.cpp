#include "mixed_kv/settings.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cstdlib>
#include <string>

#include "mixed_kv/error.h"

extern char** environ;  // POSIX

namespace mixed_kv {

namespace {

constexpr std::string_view kPrefix = "GGML_MIXED_KV_";
constexpr const char* kWindow = "GGML_MIXED_KV_WINDOW";
constexpr const char* kSinks = "GGML_MIXED_KV_SINKS";
constexpr const char* kKey = "GGML_MIXED_KV_K";
constexpr const char* kValue = "GGML_MIXED_KV_V";
constexpr const char* kVerbose = "GGML_MIXED_KV_VERBOSE";
constexpr std::array kKnown = {kWindow, kSinks, kKey, kValue, kVerbose};

constexpr int kLargestWindow = 1 << 20;
constexpr int kLargestSinks = 1 << 16;
constexpr const char* kDefaultFormat = "q4";

// NAME='value', on one line whatever the value is.
std::string quoted(std::string_view name, std::string_view value) {
    std::string text(name);
    text.append("='");
    for (const char c : value) text.push_back(static_cast<unsigned char>(c) < ' ' ? '?' : c);
    return text.append("'");
}

[[noreturn]] void refuse(const char* name, std::string_view value, const std::string& accepted) {
    throw Error(quoted(name, value).append(" is not valid: ").append(accepted));
}

int integer(const char* name, const std::string& text, int largest) {
    int value = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error != std::errc{} || end != text.data() + text.size() || value < 0 || value > largest) {
        refuse(name, text, "a whole number from 0 to " + std::to_string(largest) + " is accepted");
    }
    return value;
}

std::string format_names() {
    std::string names = "f16";
    for (const ColdFormat& format : cold_formats()) {
        names += ' ';
        names += format.name;
    }
    return names;
}

const ColdFormat* format(const char* name, const std::string& text) {
    if (text == "f16") return nullptr;
    const ColdFormat* found = find_cold_format(text);
    if (found == nullptr) refuse(name, text, "one of these is accepted: " + format_names());
    return found;
}

}  // namespace

std::string_view format_name(const ColdFormat* format) noexcept {
    return format == nullptr ? "f16" : format->name;
}

Settings Settings::from_environment(const std::function<std::optional<std::string>(const char*)>& get) {
    Settings settings;
    if (const auto text = get(kWindow)) settings.window = integer(kWindow, *text, kLargestWindow);
    if (const auto text = get(kSinks)) settings.sinks = integer(kSinks, *text, kLargestSinks);
    settings.key_format = format(kKey, get(kKey).value_or(kDefaultFormat));
    settings.value_format = format(kValue, get(kValue).value_or(kDefaultFormat));
    if (const auto text = get(kVerbose)) settings.verbose = integer(kVerbose, *text, 2);
    return settings;
}

Settings Settings::from_environment() {
    // A misspelt name would otherwise be ignored without a word.
    for (char** entry = environ; entry != nullptr && *entry != nullptr; ++entry) {
        const std::string_view text(*entry);
        const std::string_view name = text.substr(0, text.find('='));
        if (name.substr(0, kPrefix.size()) != kPrefix) continue;
        bool known = false;
        std::string names;
        for (const char* candidate : kKnown) {
            known = known || name == candidate;
            if (!names.empty()) names += ' ';
            names += candidate;
        }
        if (!known) {
            const std::string_view value = text.substr(std::min(text.size(), name.size() + 1));
            throw Error(quoted(name, value).append(" is not known: the settings are ").append(names));
        }
    }
    return from_environment([](const char* name) -> std::optional<std::string> {
        const char* value = std::getenv(name);
        if (value == nullptr) return std::nullopt;
        return value;
    });
}

}  // namespace mixed_kv
