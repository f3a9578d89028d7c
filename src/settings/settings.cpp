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

constexpr std::string_view kPrefix = "GGML_MIXED_KV";
constexpr const char* kPreset = "GGML_MIXED_KV";
constexpr const char* kWindow = "GGML_MIXED_KV_WINDOW";
constexpr const char* kSinks = "GGML_MIXED_KV_SINKS";
constexpr const char* kKey = "GGML_MIXED_KV_K";
constexpr const char* kValue = "GGML_MIXED_KV_V";
constexpr const char* kLayers = "GGML_MIXED_KV_LAYERS";
constexpr const char* kBits = "GGML_MIXED_KV_BITS";
constexpr const char* kCalibration = "GGML_MIXED_KV_CALIBRATION";
constexpr const char* kVerbose = "GGML_MIXED_KV_VERBOSE";
constexpr const char* kLimit = "GGML_MIXED_KV_LIMIT_MB";
constexpr std::array kKnown = {kPreset, kWindow, kSinks,       kKey,     kValue,
                               kLayers, kBits,   kCalibration, kVerbose, kLimit};

// docs/quality.md has the figures; the first is the default.
constexpr Preset kPresets[] = {
    {"balanced", 64, 4, "q4", "q4"},
    {"quality", 128, 4, "q6", "q6"},
    {"small", 32, 4, "q3", "q3"},
};

constexpr int kLargestWindow = 1 << 20;
constexpr int kLargestSinks = 1 << 16;
constexpr int kLargestLimit = 1 << 30;  // 1 PiB
constexpr double kLargestBits = 16;

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

const ColdFormat* parse_format(const char* name, const std::string& text) {
    if (text == "f16") return nullptr;
    const ColdFormat* found = find_cold_format(text);
    if (found == nullptr) refuse(name, text, "one of these is accepted: " + format_names());
    return found;
}

const Preset& parse_preset(const std::string& text) {
    std::string names;
    for (const Preset& candidate : kPresets) {
        if (candidate.name == text) return candidate;
        names += ' ';
        names += candidate.name;
    }
    refuse(kPreset, text, "one of these is accepted:" + names);
}

double parse_bits(const std::string& text) {
    double value = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error != std::errc{} || end != text.data() + text.size() || !(value > 0 && value <= kLargestBits)) {
        refuse(kBits, text, "bits per value, above 0 and up to 16, are accepted");
    }
    return value;
}

// Formats by layer within a budget; null without one.
std::shared_ptr<const BitAllocation> read_allocation(
    const std::function<std::optional<std::string>(const char*)>& get) {
    const auto budget = get(kBits);
    const auto file = get(kCalibration);
    if (!budget) {
        if (file) refuse(kCalibration, *file, std::string("it is accepted together with ") + kBits);
        return nullptr;
    }
    const double value = parse_bits(*budget);
    for (const char* other : {kKey, kValue}) {
        if (get(other)) refuse(kBits, *budget, std::string("it is accepted without ") + other);
    }
    if (!file) {
        refuse(kBits, *budget,
               std::string("it is accepted together with ") + kCalibration +
                   "=FILE, which mixed-kv-eval --calibrate MODEL writes");
    }
    try {
        return std::make_shared<const BitAllocation>(Calibration::read(*file), value);
    } catch (const Error& error) {
        refuse(kBits, *budget, std::string("no choice of formats is accepted: ") + error.what());
    }
}

}  // namespace

std::span<const Preset> presets() noexcept { return kPresets; }

std::string format_names() {
    std::string names = "f16";
    for (const ColdFormat& format : cold_formats()) {
        names += ' ';
        names += format.name;
    }
    return names;
}

std::string_view format_name(const ColdFormat* format) noexcept {
    return format == nullptr ? "f16" : format->name;
}

Settings Settings::from_environment(const std::function<std::optional<std::string>(const char*)>& get) {
    Settings settings;
    const Preset& base = parse_preset(get(kPreset).value_or(std::string(kPresets[0].name)));
    settings.preset = base.name;
    settings.window = base.window;
    settings.sinks = base.sinks;
    if (const auto text = get(kWindow)) settings.window = integer(kWindow, *text, kLargestWindow);
    if (const auto text = get(kSinks)) settings.sinks = integer(kSinks, *text, kLargestSinks);
    settings.key_format = parse_format(kKey, get(kKey).value_or(std::string(base.key_format)));
    settings.value_format = parse_format(kValue, get(kValue).value_or(std::string(base.value_format)));
    if (const auto text = get(kLayers)) {
        try {
            settings.layers = parse_layer_rules(*text);
        } catch (const Error& error) {
            refuse(kLayers, *text,
                   std::string(error.what()) + "; a list such as 0-1,-2--1:q8 or 3:q6/q5 is accepted");
        }
    }
    settings.allocation = read_allocation(get);
    if (const auto text = get(kVerbose)) settings.verbose = integer(kVerbose, *text, 2);
    if (const auto text = get(kLimit)) settings.limit_mb = integer(kLimit, *text, kLargestLimit);
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
