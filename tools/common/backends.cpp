#include "common/backends.h"

#include <dlfcn.h>
#include <ggml.h>
#include <llama.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <stdexcept>

#include "common/library_file.h"
#include "common/llama_log.h"
#include "common/run_tool.h"

namespace mixed_kv::tools {

namespace fs = std::filesystem;

namespace {

template <typename Function>
std::string library_of(Function* function) {
    Dl_info info;
    if (dladdr(reinterpret_cast<void*>(function), &info) == 0 || info.dli_fname == nullptr) {
        return "";
    }
    std::error_code ignored;
    const fs::path path = fs::weakly_canonical(info.dli_fname, ignored);
    return ignored ? info.dli_fname : path.string();
}

bool has_cpu_backend(const fs::path& directory) {
    std::error_code ignored;
    for (const fs::directory_entry& entry : fs::directory_iterator(directory, ignored)) {
        if (entry.path().filename().string().rfind("libggml-cpu", 0) == 0) {
            return true;
        }
    }
    return false;
}

std::string bundled_plugin() {
    std::error_code ignored;
    const fs::path executable = fs::read_symlink("/proc/self/exe", ignored);
    if (ignored) {
        return "";
    }
    const fs::path root = executable.parent_path().parent_path();
    for (const char* folder : {"lib", MIXED_KV_INSTALL_LIBDIR}) {
        const fs::path plugin = root / folder / "libggml-mixed-kv.so";
        if (fs::exists(plugin, ignored)) {
            return plugin.string();
        }
    }
    return "";
}

std::string environment(const char* name) {
    const char* value = std::getenv(name);
    return value != nullptr ? value : "";
}

// Where llama.cpp and ggml find their own assumptions contradicted they end the process: with a debugger's
// trace, also on standard output, and exit status 134.
[[noreturn]] void give_up(const char* message) {
    std::fprintf(stderr, "%s: error: llama.cpp gave up: %s\n", program_invocation_short_name,
                 one_line(message).c_str());
    std::_Exit(kExitFailure);
}

}  // namespace

BackendPaths find_backend_paths() {
    BackendPaths paths;
    paths.llama_library = library_of(&llama_backend_init);
    paths.ggml_library = library_of(&ggml_version);
    paths.backend_directory = environment("MIXED_KV_LLAMA_LIB_DIR");
    if (paths.backend_directory.empty()) {
        const fs::path beside = fs::path(paths.ggml_library).parent_path();
        if (has_cpu_backend(beside)) {
            paths.backend_directory = beside.string();
        }
    }
    paths.plugin = environment("GGML_BACKEND_PATH");
    paths.plugin_from_environment = !paths.plugin.empty();
    if (!paths.plugin_from_environment) {
        paths.plugin = bundled_plugin();
    }
    // A bare name is looked for by the dynamic linker, in places that only it knows.
    if (paths.plugin.find('/') != std::string::npos) {
        paths.plugin_fault = why_no_library(paths.plugin);
    }
    return paths;
}

void load_backends(const BackendPaths& paths, PluginUse use) {
    ggml_set_abort_callback(give_up);
    if (use == PluginUse::load && !paths.plugin.empty() && paths.plugin_fault.empty()) {
        setenv("GGML_BACKEND_PATH", paths.plugin.c_str(), 1);
    } else {
        unsetenv("GGML_BACKEND_PATH");
    }
    if (paths.backend_directory.empty()) {
        ggml_backend_load_all();
    } else {
        ggml_backend_load_all_from_path(paths.backend_directory.c_str());
    }
    if (ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU) == nullptr) {
        throw std::runtime_error("llama.cpp has no CPU backend" +
                                 (paths.backend_directory.empty() ? "" : " in " + paths.backend_directory) +
                                 " (MIXED_KV_LLAMA_LIB_DIR names another folder)");
    }
    llama_backend_init();
}

std::vector<std::string> mapped_files(const std::string& part) {
    std::vector<std::string> files;
    std::ifstream maps("/proc/self/maps");
    for (std::string line; std::getline(maps, line);) {
        const std::size_t slash = line.find('/');
        if (slash == std::string::npos) {
            continue;
        }
        const std::string file = line.substr(slash);
        if (fs::path(file).filename().string().find(part) != std::string::npos &&
            std::find(files.begin(), files.end(), file) == files.end()) {
            files.push_back(file);
        }
    }
    return files;
}

void* cpu_backend_function(const char* name) {
    ggml_backend_dev_t cpu = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
    ggml_backend_reg_t reg = cpu != nullptr ? ggml_backend_dev_backend_reg(cpu) : nullptr;
    void* function = reg != nullptr ? ggml_backend_reg_get_proc_address(reg, name) : nullptr;
    if (function == nullptr) {
        throw std::runtime_error(std::string("llama.cpp's CPU backend has no ") + name);
    }
    return function;
}

}  // namespace mixed_kv::tools
