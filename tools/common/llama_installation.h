#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace mixed_kv::tools {

// Other installations of llama.cpp than the one that this program was linked with.

// The folder of an installation's libraries: itself, or where archives, prefixes, source trees and npm
// packages have them below. Throws std::runtime_error, naming `what`, where there are none.
std::string llama_library_folder(const std::string& what, const std::string& installation);

// Where installations usually are and libraries of ggml were found, each folder once: MIXED_KV_LLAMA_LIB_DIR,
// this program's own, node-llama-cpp of the project that this is started in, llama-server's on the PATH, the
// system's.
std::vector<std::string> installed_llama_folders();

// Which ggml lies in a folder and whether the plugin file fits it, from a process of its own (look-at-llama
// says what its members are); without a plugin "fits" and "said" are missing. Throws std::runtime_error where
// that process ends without an answer.
nlohmann::ordered_json look_at_llama(const std::string& folder, const std::string& plugin);

}  // namespace mixed_kv::tools
