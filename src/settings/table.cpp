#include <algorithm>
#include <cctype>
#include <charconv>
#include <sstream>

#include "mixed_kv/error.h"
#include "mixed_kv/setting_table.h"
#include "settings/refusal.h"

namespace mixed_kv {

namespace {

// docs/quality.md has the figures; the first is the default.
constexpr Preset kPresets[] = {
    {"balanced", 64, 4, "q4", "q4"},
    {"quality", 128, 4, "q6", "q6"},
    {"small", 32, 4, "q3", "q3"},
};

// Numbers: a member of Settings and the largest that it may be.

template <int largest>
std::string accepted_number() {
    return "0 to " + std::to_string(largest);
}

template <int Settings::*member, int largest>
void read_number(Settings& settings, const Setting& self, const std::string& text) {
    int value = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error != std::errc{} || end != text.data() + text.size() || value < 0 || value > largest) {
        refuse_setting(self.variable, text, "a whole number from " + self.accepted() + " is accepted");
    }
    settings.*member = value;
}

template <int Settings::*member>
std::string shown_number(const Settings& settings) {
    return std::to_string(settings.*member);
}

// Formats of cold rows.

template <const ColdFormat* Settings::*member>
void read_format(Settings& settings, const Setting& self, const std::string& text) {
    const ColdFormat* format = find_cold_format(text);
    if (format == nullptr && text != "f16") {
        refuse_setting(self.variable, text, "one of these is accepted: " + self.accepted());
    }
    settings.*member = format;
}

template <const ColdFormat* Settings::*member>
std::string shown_format(const Settings& settings) {
    return std::string(format_name(settings.*member));
}

// The others.

std::string preset_names() {
    std::string names;
    for (const Preset& preset : kPresets) names.append(names.empty() ? "" : " ").append(preset.name);
    return names;
}

void read_preset(Settings& settings, const Setting& self, const std::string& text) {
    for (const Preset& preset : kPresets) {
        if (preset.name != text) continue;
        settings.preset = preset.name;
        settings.window = preset.window;
        settings.sinks = preset.sinks;
        settings.key_format = find_cold_format(preset.key_format);
        settings.value_format = find_cold_format(preset.value_format);
        return;
    }
    refuse_setting(self.variable, text, "one of these is accepted: " + self.accepted());
}

std::string shown_preset(const Settings& settings) { return settings.preset; }

void read_layers(Settings& settings, const Setting& self, const std::string& text) {
    try {
        settings.layers = parse_layer_rules(text);
    } catch (const Error& error) {
        refuse_setting(self.variable, text,
                       std::string(error.what()) + "; " + self.accepted() + " is accepted");
    }
}

std::string accepted_layers() { return "a list such as 0-1,-2--1:q8 or 3:q6/q5"; }
std::string accepted_bits() { return "above 0, up to 16; needs a calibration"; }
std::string accepted_calibration() { return "a file that mixed-kv-eval --calibrate wrote"; }
std::string shown_none(const Settings&) { return "-"; }

// The budget. Without one a ladder is refused by Settings::from_environment.

std::string accepted_budget() { return "MiB, or a share of F16 such as 25%"; }
std::string accepted_ladder() { return "f16 and narrower and narrower formats, such as f16,q8,q4,q3"; }

void read_budget(Settings& settings, const Setting& self, const std::string& text) {
    try {
        settings.budget = parse_budget(text);
    } catch (const Error& error) {
        refuse_setting(self.variable, text, std::string(error.what()) + "; accepted: " + self.accepted());
    }
}

void read_ladder(Settings& settings, const Setting& self, const std::string& text) {
    try {
        settings.ladder = parse_ladder(text);
    } catch (const Error& error) {
        refuse_setting(self.variable, text, std::string(error.what()) + "; accepted: " + self.accepted());
    }
}

std::string shown_budget(const Settings& settings) {
    return settings.budget ? budget_text(settings.budget) : "-";
}

std::string shown_ladder(const Settings& settings) {
    return settings.budget ? ladder_text(settings.ladder) : "-";
}

constexpr int kLargestWindow = 1 << 20;
constexpr int kLargestSinks = 1 << 16;
constexpr int kLargestVerbose = 2;
constexpr int kLargestLimit = 1 << 30;  // 1 PiB

constexpr Setting kSettings[] = {
    {"GGML_MIXED_KV", "preset", "NAME", "What the next four are without being given", preset_names,
     read_preset, shown_preset},
    {"GGML_MIXED_KV_WINDOW", "window", "ROWS", "Newest rows of each sequence kept in FP16",
     accepted_number<kLargestWindow>, read_number<&Settings::window, kLargestWindow>,
     shown_number<&Settings::window>},
    {"GGML_MIXED_KV_SINKS", "sinks", "ROWS", "First rows of each sequence kept in FP16",
     accepted_number<kLargestSinks>, read_number<&Settings::sinks, kLargestSinks>,
     shown_number<&Settings::sinks>},
    {"GGML_MIXED_KV_K", "k", "FORMAT", "Format of older K rows", format_names,
     read_format<&Settings::key_format>, shown_format<&Settings::key_format>},
    {"GGML_MIXED_KV_V", "v", "FORMAT", "Format of older V rows", format_names,
     read_format<&Settings::value_format>, shown_format<&Settings::value_format>},
    {"GGML_MIXED_KV_LAYERS", "layers", "RULES", "Other formats for some layers", accepted_layers, read_layers,
     shown_none},
    {"GGML_MIXED_KV_BITS", "bits", "NUMBER", "Formats by layer within this many bits per value",
     accepted_bits, nullptr, shown_none},
    {"GGML_MIXED_KV_CALIBRATION", "calibration", "FILE",
     "What is known about the model, for a number of bits", accepted_calibration, nullptr, shown_none},
    {"GGML_MIXED_KV_BUDGET_MB", "budget", "MIB",
     "What all caches together may take; rows stay exact while they fit", accepted_budget, read_budget,
     shown_budget},
    {"GGML_MIXED_KV_LADDER", "ladder", "FORMATS", "Formats that pages step down under a budget",
     accepted_ladder, read_ladder, shown_ladder},
    {"GGML_MIXED_KV_VERBOSE", "verbose", "LEVEL", "What the plugin logs besides one line per cache",
     accepted_number<kLargestVerbose>, read_number<&Settings::verbose, kLargestVerbose>,
     shown_number<&Settings::verbose>},
    {"GGML_MIXED_KV_LIMIT_MB", "limit_mb", "MIB",
     "Most that all caches together may take when full, 0 for no limit", accepted_number<kLargestLimit>,
     read_number<&Settings::limit_mb, kLargestLimit>, shown_number<&Settings::limit_mb>},
};

constexpr std::string_view kIsaName = "isa";
constexpr const char* kIsaVariable = "MIXED_KV_ISA";

}  // namespace

std::span<const Preset> presets() noexcept { return kPresets; }

std::span<const Setting> setting_table() noexcept { return kSettings; }

std::string Setting::option() const {
    std::string text = std::string("--kv-") + name;
    std::replace(text.begin(), text.end(), '_', '-');
    return text;
}

std::map<std::string, std::string> settings_of_text(const std::string& text) {
    std::map<std::string, std::string> values;
    std::istringstream items(text);
    std::string name;
    for (std::string item; std::getline(items, item, ',');) {
        // A ladder has commas of its own.
        if (name == "ladder" && item.find('=') == std::string::npos) {
            values["GGML_MIXED_KV_LADDER"] += ',' + item;
            continue;
        }
        // A list of layers, too; what follows one begins with a layer's number.
        if (name == "layers" && !item.empty() && (item[0] == '-' || std::isdigit((unsigned char)item[0]))) {
            values["GGML_MIXED_KV_LAYERS"] += ',' + item;
            continue;
        }
        const auto equals = item.find('=');
        name = item.substr(0, equals);
        std::transform(name.begin(), name.end(), name.begin(),
                       [](unsigned char c) { return char(std::tolower(c)); });
        const auto* setting = std::find_if(std::begin(kSettings), std::end(kSettings),
                                           [&](const Setting& s) { return name == s.name; });
        if (equals == std::string::npos || (setting == std::end(kSettings) && name != kIsaName)) {
            std::string names;
            for (const Setting& s : kSettings) names += std::string(s.name) + '=' + s.value_name + ", ";
            throw Error("'" + item + "' is not a cache setting: " + names + "and isa=NAME are");
        }
        values[name == kIsaName ? kIsaVariable : setting->variable] = item.substr(equals + 1);
    }
    return values;
}

}  // namespace mixed_kv
