#include "settings/refusal.h"

#include "mixed_kv/error.h"

namespace mixed_kv {

std::string quoted_setting(std::string_view name, std::string_view value) {
    std::string text(name);
    text.append("='");
    for (const char c : value) text.push_back(static_cast<unsigned char>(c) < ' ' ? '?' : c);
    return text.append("'");
}

void refuse_setting(std::string_view name, std::string_view value, const std::string& accepted) {
    throw Error(quoted_setting(name, value).append(" is not valid: ").append(accepted));
}

}  // namespace mixed_kv
