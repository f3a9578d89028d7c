#pragma once

#include <string>

namespace mixed_kv::tools {

// The whole file. Throws std::runtime_error "cannot read <what> '<path>': <reason>".
std::string read_text_file(const std::string& what, const std::string& path);

}  // namespace mixed_kv::tools
