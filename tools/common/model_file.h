#pragma once

#include <string>

namespace mixed_kv::tools {

// Looks at a GGUF model before llama.cpp does, which ends the process where a header contradicts what it
// takes for granted, and says in several lines what else is wrong. Throws std::runtime_error: no such file,
// not GGUF, or a header field with its value and what is accepted. What this does not understand is left to
// llama.cpp.
void check_model_file(const std::string& path);

}  // namespace mixed_kv::tools
