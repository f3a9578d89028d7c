#pragma once

#include <ggml-backend.h>

#include <string>
#include <vector>

namespace mixed_kv::tools {

// Where things are, before anything is loaded.
struct BackendPaths {
    std::string llama_library;      // file of libllama
    std::string ggml_library;       // file of libggml-base
    std::string backend_directory;  // of the loadable CPU backends; empty: llama.cpp's own search
    std::string plugin;  // what GGML_BACKEND_PATH says, or the plugin that belongs to this executable
    bool plugin_from_environment = false;
    std::string plugin_fault;  // why that file cannot be a library, after its name; empty when it may be one
};

// MIXED_KV_LLAMA_LIB_DIR (environment) names the folder of the loadable backends; without it that is the
// folder of libggml-base, where it holds any. The plugin: GGML_BACKEND_PATH, else libggml-mixed-kv.so in
// ../lib next to the executable's folder, in a build tree as well as installed. plugin is empty when there is
// none.
BackendPaths find_backend_paths();

enum class PluginUse { load, leave_out };

// Loads the CPU backend and, with PluginUse::load, the plugin, the way every llama.cpp program does:
// GGML_BACKEND_PATH and ggml_backend_load_all_from_path. A file with a plugin_fault is left out: the dynamic
// linker would not survive a truncated one. Once per process. Throws std::runtime_error when there is no CPU
// backend. From then on, an assertion of llama.cpp's ends the process with one line and kExitFailure.
void load_backends(const BackendPaths& paths, PluginUse use);

// Files mapped into this process whose name contains `part`, in order of address.
std::vector<std::string> mapped_files(const std::string& part);

// An entry of the CPU backend, which is loaded at run time and so cannot be linked to. Throws when missing.
void* cpu_backend_function(const char* name);

}  // namespace mixed_kv::tools
