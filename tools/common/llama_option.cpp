#include "common/llama_option.h"

#include <fmt/format.h>
#include <ggml.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <vector>

#include "common/backends.h"
#include "common/llama_installation.h"

namespace mixed_kv::tools {

namespace {

namespace fs = std::filesystem;

constexpr const char* kVariable = "MIXED_KV_LLAMA_LIB_DIR";
constexpr const char* kPreload = "LD_PRELOAD";

std::string environment(const char* name) {
    const char* value = std::getenv(name);
    return value != nullptr ? value : "";
}

bool holds_libllama(const fs::path& folder) {
    std::error_code ignored;
    for (const fs::directory_entry& entry : fs::directory_iterator(folder, ignored)) {
        if (entry.path().filename().string().rfind("libllama.", 0) == 0) return true;
    }
    return false;
}

// LD_PRELOAD without the libraries of a folder.
std::string without(const std::string& preload, const fs::path& folder) {
    std::string rest;
    for (std::size_t at = 0; at < preload.size();) {
        const std::size_t end = std::min(preload.find(':', at), preload.size());
        const std::string file = preload.substr(at, end - at);
        if (fs::path(file).parent_path() != folder) rest += (rest.empty() ? "" : ":") + file;
        at = end + 1;
    }
    return rest;
}

// The arguments that this program was started with.
std::vector<std::string> own_arguments() {
    std::ifstream file("/proc/self/cmdline", std::ios::binary);
    const std::string text{std::istreambuf_iterator<char>(file), {}};
    std::vector<std::string> arguments;
    for (std::size_t at = 0; at < text.size(); at += arguments.back().size() + 1) {
        arguments.emplace_back(text.c_str() + at);
    }
    return arguments;
}

// Starts this program again with libraries in front of those that it was linked with. The dynamic linker
// takes every function from the first library that has it, so that the names of the files do not matter.
[[noreturn]] void start_again_with(const std::vector<std::string>& libraries, const fs::path& folder) {
    std::string preload;
    for (const std::string& library : libraries) preload += library + ":";
    preload += environment(kPreload);
    if (preload.back() == ':') preload.pop_back();
    setenv(kPreload, preload.c_str(), 1);
    setenv(kVariable, folder.c_str(), 1);
    std::vector<std::string> arguments = own_arguments();
    std::vector<char*> pointers;
    for (std::string& argument : arguments) pointers.push_back(argument.data());
    pointers.push_back(nullptr);
    execv("/proc/self/exe", pointers.data());
    throw std::runtime_error("--llama: cannot start this program again: " +
                             std::string(std::strerror(errno)));
}

}  // namespace

void LlamaOption::add_to(CommandLine& command) {
    command
        .option("--llama", folder_,
                "Another llama.cpp of the same release to run on, instead of the one this program came with "
                "(MIXED_KV_LLAMA_LIB_DIR)")
        .value_name("FOLDER");
}

void LlamaOption::use() const {
    const std::string what = folder_ ? "--llama" : kVariable;
    const std::string asked = folder_ ? *folder_ : environment(kVariable);
    if (asked.empty()) return;
    // The variable may also name a folder of CPU backends alone.
    if (!folder_ && !holds_libllama(asked)) return;
    const fs::path folder = llama_library_folder(what, asked);
    const BackendPaths paths = find_backend_paths();
    const std::string preload = environment(kPreload);
    const std::string others = without(preload, folder);
    if (fs::path(paths.llama_library).parent_path() == folder) {
        // Theirs already; programs that this one starts choose for themselves.
        if (others.empty()) {
            unsetenv(kPreload);
        } else {
            setenv(kPreload, others.c_str(), 1);
        }
        setenv(kVariable, folder.c_str(), 1);
        return;
    }
    if (folder.string().find_first_of(": ") != std::string::npos)
        throw std::runtime_error(
            what + ": the dynamic linker takes no name with a space or colon: " + folder.string());
    if (others != preload)
        throw std::runtime_error(what + ": the dynamic linker does not take the libraries in " +
                                 folder.string());
    const nlohmann::ordered_json facts = look_at_llama(folder.string(), "");
    if (const std::string fault = facts.value("fault", ""); !fault.empty())
        throw std::runtime_error(what + ": " + fault);
    if (facts.value("llama_library", "").empty())
        throw std::runtime_error(what + ": no libllama in " + folder.string());
    const std::string version = facts.value("ggml_version", "unknown");
    if (version != ggml_version()) {
        throw std::runtime_error(
            fmt::format("{}: {} has ggml {}, this program is for {}; the plugin may fit all the same: "
                        "mixed-kv-doctor --llama {}",
                        what, folder.string(), version, ggml_version(), folder.string()));
    }
    start_again_with({facts.at("llama_library"), facts.at("ggml_library"), facts.at("library")}, folder);
}

}  // namespace mixed_kv::tools
