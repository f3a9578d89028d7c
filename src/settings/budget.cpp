#include <charconv>
#include <cmath>
#include <cstdio>

#include "mixed_kv/error.h"
#include "mixed_kv/settings.h"

namespace mixed_kv {

namespace {

constexpr double kMostMebibytes = 1 << 30;

}  // namespace

std::vector<const ColdFormat*> parse_ladder(std::string_view text) {
    std::vector<const ColdFormat*> ladder;
    bool is_first = true;
    while (true) {
        const auto comma = text.find(',');
        const std::string name(text.substr(0, comma));
        if (is_first) {
            if (name != "f16") throw Error("a ladder begins with f16");
        } else {
            const ColdFormat* format = find_cold_format(name);
            if (format == nullptr) throw Error("'" + name + "' is no format; " + format_names() + " are");
            if (!ladder.empty() && format->code_bits >= ladder.back()->code_bits)
                throw Error(name + " is not narrower than " + std::string(ladder.back()->name) +
                            " before it");
            ladder.push_back(format);
        }
        is_first = false;
        if (comma == std::string_view::npos) break;
        text.remove_prefix(comma + 1);
    }
    if (ladder.empty()) throw Error("a ladder has a format below f16");
    return ladder;
}

Budget parse_budget(std::string_view text) {
    const bool is_share = !text.empty() && text.back() == '%';
    const std::string_view digits = text.substr(0, text.size() - (is_share ? 1 : 0));
    double value = 0;
    const auto [end, error] =
        std::from_chars(digits.data(), digits.data() + digits.size(), value, std::chars_format::fixed);
    if (error != std::errc{} || end != digits.data() + digits.size() || !std::isfinite(value) || value <= 0 ||
        value > (is_share ? 100 : kMostMebibytes)) {
        throw Error("it is neither a number of MiB nor a share of F16");
    }
    Budget budget;
    (is_share ? budget.share : budget.mebibytes) = is_share ? value / 100 : value;
    return budget;
}

std::string budget_text(const Budget& budget) {
    char text[64];
    if (budget.share > 0) {
        std::snprintf(text, sizeof text, "%.10g %% of F16", budget.share * 100);
    } else {
        std::snprintf(text, sizeof text, "%.10g MiB", budget.mebibytes);
    }
    return text;
}

std::string ladder_text(const std::vector<const ColdFormat*>& ladder) {
    std::string text = "f16";
    for (const ColdFormat* format : ladder) text.append(",").append(format->name);
    return text;
}

}  // namespace mixed_kv
