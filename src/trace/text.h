#pragma once

#include <sstream>
#include <string>
#include <string_view>

namespace mixed_kv::trace {

// Joins its arguments into one line of text for error messages.
template <typename... Parts>
std::string cat(const Parts&... parts) {
    std::ostringstream out;
    (out << ... << parts);
    return out.str();
}

// A name from an untrusted file, in quotes, safe to print on one line: control and non-ASCII bytes become
// '?', and long names are cut.
inline std::string in_quotes(std::string_view name) {
    constexpr size_t kMaxShown = 80;
    std::string out = "'";
    for (const char c : name.substr(0, kMaxShown)) {
        out += (c >= 0x20 && c < 0x7f) ? c : '?';
    }
    out += name.size() > kMaxShown ? "...'" : "'";
    return out;
}

}  // namespace mixed_kv::trace
