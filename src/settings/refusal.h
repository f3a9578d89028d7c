#pragma once

#include <string>
#include <string_view>

namespace mixed_kv {

// NAME='value', on one line whatever the value is.
std::string quoted_setting(std::string_view name, std::string_view value);

// Throws Error: the setting, its value, and what is accepted instead.
[[noreturn]] void refuse_setting(std::string_view name, std::string_view value, const std::string& accepted);

}  // namespace mixed_kv
