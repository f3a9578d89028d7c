#include <charconv>

#include "mixed_kv/error.h"
#include "mixed_kv/settings.h"

namespace mixed_kv {

namespace {

constexpr int kLargestLayer = 9999;

[[noreturn]] void refuse(std::string_view part, const std::string& why) {
    std::string shown(part);
    for (char& c : shown) c = static_cast<unsigned char>(c) < ' ' ? '?' : c;
    throw Error("'" + shown + "' " + why);
}

// Takes a layer's number, with its sign, from the front of text.
int take_layer(std::string_view& text, std::string_view part) {
    int value = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error != std::errc{} || value > kLargestLayer || value < -kLargestLayer) {
        refuse(part, "is no layer or range of layers, such as 3, 0-1 or -2--1");
    }
    text.remove_prefix(static_cast<std::size_t>(end - text.data()));
    return value;
}

LayerRule parse_range(std::string_view part) {
    LayerRule rule;
    std::string_view rest = part;
    rule.first = rule.last = take_layer(rest, part);
    if (!rest.empty()) {
        if (rest.front() != '-') refuse(part, "is no layer or range of layers, such as 3, 0-1 or -2--1");
        rest.remove_prefix(1);
        rule.last = take_layer(rest, part);
        if (!rest.empty()) refuse(part, "is no layer or range of layers, such as 3, 0-1 or -2--1");
        // 0--1 is all of them, 5--2 depends on the model; of two with the same sign the order is known.
        if ((rule.first < 0) == (rule.last < 0) && rule.first > rule.last) refuse(part, "is an empty range");
        if (rule.first < 0 && rule.last >= 0) refuse(part, "runs from the end to the beginning");
    }
    return rule;
}

std::optional<const ColdFormat*> parse_format(std::string_view name, std::string_view formats) {
    if (name == "-") return std::nullopt;
    if (name == "f16") return nullptr;
    const ColdFormat* found = find_cold_format(name);
    if (found == nullptr) refuse(formats, "names no format: " + format_names() + " are");
    return found;
}

void parse_formats(std::string_view text, LayerRule& rule) {
    const auto slash = text.find('/');
    if (slash == std::string_view::npos) {
        rule.key = rule.value = parse_format(text, text);
    } else {
        rule.key = parse_format(text.substr(0, slash), text);
        rule.value = parse_format(text.substr(slash + 1), text);
    }
    if (!rule.key && !rule.value) refuse(text, "says neither K's format nor V's");
}

}  // namespace

std::vector<LayerRule> parse_layer_rules(std::string_view text) {
    std::vector<LayerRule> rules;
    std::size_t n_complete = 0;  // of the rules, those whose formats are known
    while (true) {
        const auto comma = text.find(',');
        const std::string_view part = text.substr(0, comma);
        const auto colon = part.find(':');
        rules.push_back(parse_range(part.substr(0, colon)));
        if (colon != std::string_view::npos) {
            LayerRule formats;
            parse_formats(part.substr(colon + 1), formats);
            for (; n_complete < rules.size(); ++n_complete) {
                rules[n_complete].key = formats.key;
                rules[n_complete].value = formats.value;
            }
        }
        if (comma == std::string_view::npos) {
            if (n_complete < rules.size()) refuse(part, "is not followed by a colon and a format");
            return rules;
        }
        text.remove_prefix(comma + 1);
    }
}

const ColdFormat* Settings::format(KvRole role, int layer, int n_layers) const noexcept {
    const ColdFormat* format = role == KvRole::key ? key_format : value_format;
    if (allocation != nullptr) format = allocation->format(role, layer);
    for (const LayerRule& rule : layers) {
        const int first = rule.first < 0 ? rule.first + n_layers : rule.first;
        const int last = rule.last < 0 ? rule.last + n_layers : rule.last;
        const auto& said = role == KvRole::key ? rule.key : rule.value;
        if (said && layer >= first && layer <= last) format = *said;
    }
    return format;
}

}  // namespace mixed_kv
