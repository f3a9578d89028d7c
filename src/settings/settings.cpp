#include "mixed_kv/settings.h"

#include <charconv>
#include <cstdlib>
#include <string>

#include "mixed_kv/error.h"
#include "mixed_kv/setting_table.h"
#include "settings/refusal.h"

extern char** environ;  // POSIX

namespace mixed_kv {

namespace {

constexpr std::string_view kPrefix = "GGML_MIXED_KV";
constexpr const char* kBits = "GGML_MIXED_KV_BITS";
constexpr const char* kCalibration = "GGML_MIXED_KV_CALIBRATION";
constexpr double kLargestBits = 16;

double parse_bits(const std::string& text) {
    double value = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error != std::errc{} || end != text.data() + text.size() || !(value > 0 && value <= kLargestBits)) {
        refuse_setting(kBits, text, "bits per value, above 0 and up to 16, are accepted");
    }
    return value;
}

// Formats by layer within a budget; null without one.
std::shared_ptr<const BitAllocation> read_allocation(
    const std::function<std::optional<std::string>(const char*)>& get) {
    const auto budget = get(kBits);
    const auto file = get(kCalibration);
    if (!budget) {
        if (file) refuse_setting(kCalibration, *file, std::string("it is accepted together with ") + kBits);
        return nullptr;
    }
    const double value = parse_bits(*budget);
    for (const char* other : {"GGML_MIXED_KV_K", "GGML_MIXED_KV_V"}) {
        if (get(other)) refuse_setting(kBits, *budget, std::string("it is accepted without ") + other);
    }
    if (!file) {
        refuse_setting(kBits, *budget,
                       std::string("it is accepted together with ") + kCalibration +
                           "=FILE, which mixed-kv-eval --calibrate MODEL writes");
    }
    try {
        return std::make_shared<const BitAllocation>(Calibration::read(*file), value);
    } catch (const Error& error) {
        refuse_setting(kBits, *budget, std::string("no choice of formats is accepted: ") + error.what());
    }
}

constexpr const char* kBudget = "GGML_MIXED_KV_BUDGET_MB";
constexpr const char* kLadder = "GGML_MIXED_KV_LADDER";
constexpr const char* kDefaultLadder = "f16,q8,q4,q3";

// A budget chooses the formats, and is a limit by itself.
void settle_budget(Settings& settings, const std::function<std::optional<std::string>(const char*)>& get) {
    if (!settings.budget) {
        if (const auto ladder = get(kLadder))
            refuse_setting(kLadder, *ladder, std::string("it is accepted together with ") + kBudget);
        return;
    }
    if (settings.ladder.empty()) settings.ladder = parse_ladder(kDefaultLadder);
    for (const char* other : {"GGML_MIXED_KV_K", "GGML_MIXED_KV_V", "GGML_MIXED_KV_LAYERS", kBits}) {
        const auto text = get(other);
        if (!text) continue;
        refuse_setting(kBudget, *get(kBudget),
                       "it is accepted without " + std::string(other) + " ('" + *text +
                           "'): a budget chooses the formats among those of " + kLadder + " (" +
                           ladder_text(settings.ladder) + ")");
    }
    if (settings.limit_mb != 0) {
        refuse_setting(kBudget, *get(kBudget),
                       "it is accepted without GGML_MIXED_KV_LIMIT_MB (" + std::to_string(settings.limit_mb) +
                           "): a budget is never exceeded; give the smaller of the two");
    }
    settings.key_format = settings.value_format = settings.ladder.back();
}

// A misspelt name would otherwise be ignored without a word.
void refuse_unknown(std::string_view variable) {
    const auto equals = variable.find('=');
    const std::string_view name = variable.substr(0, equals);
    if (name.substr(0, kPrefix.size()) != kPrefix) return;
    std::string names;
    for (const Setting& setting : setting_table()) {
        if (name == setting.variable) return;
        names.append(names.empty() ? "" : " ").append(setting.variable);
    }
    const std::string_view value =
        equals == std::string_view::npos ? std::string_view() : variable.substr(equals + 1);
    throw Error(quoted_setting(name, value).append(" is not known: the settings are ").append(names));
}

}  // namespace

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
    const Setting& preset = setting_table().front();
    preset.read(settings, preset, std::string(presets().front().name));
    for (const Setting& setting : setting_table()) {
        if (setting.read == nullptr) continue;
        if (const auto text = get(setting.variable)) setting.read(settings, setting, *text);
    }
    settings.allocation = read_allocation(get);
    settle_budget(settings, get);
    return settings;
}

Settings Settings::from_environment() {
    for (char** entry = environ; entry != nullptr && *entry != nullptr; ++entry) refuse_unknown(*entry);
    return from_environment([](const char* name) -> std::optional<std::string> {
        const char* value = std::getenv(name);
        if (value == nullptr) return std::nullopt;
        return value;
    });
}

}  // namespace mixed_kv
