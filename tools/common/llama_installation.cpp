#include "common/llama_installation.h"

#include <fmt/format.h>
#include <sys/wait.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <optional>
#include <stdexcept>

#include "common/backends.h"

namespace mixed_kv::tools {

namespace {

namespace fs = std::filesystem;

// Where installations have their libraries: archives and containers, prefixes, source trees, npm packages.
constexpr std::array<const char*, 9> kFolders = {
    ".",
    "lib",
    "lib64",
    "lib/x86_64-linux-gnu",
    "lib/aarch64-linux-gnu",
    "bin",
    "build/bin",
    "bins/linux-x64",
    "node_modules/@node-llama-cpp/linux-x64/bins/linux-x64",
};

bool holds_ggml(const fs::path& folder) {
    std::error_code ignored;
    for (const fs::directory_entry& entry : fs::directory_iterator(folder, ignored)) {
        const std::string name = entry.path().filename().string();
        if (name.rfind("libggml-base", 0) == 0 || name.rfind("libggml.", 0) == 0) return true;
    }
    return false;
}

std::optional<fs::path> libraries_below(const fs::path& installation) {
    for (const char* below : kFolders) {
        const fs::path folder = (installation / below).lexically_normal();
        if (holds_ggml(folder)) return folder;
    }
    return std::nullopt;
}

std::string environment(const char* name) {
    const char* value = std::getenv(name);
    return value != nullptr ? value : "";
}

std::string helper() {
    std::error_code ignored;
    const fs::path bin = fs::read_symlink("/proc/self/exe", ignored).parent_path();
    for (const fs::path& place : {bin / "look-at-llama", bin.parent_path() / MIXED_KV_INSTALL_LIBDIR /
                                                             "ggml-mixed-kv" / "look-at-llama"}) {
        if (fs::exists(place, ignored)) return place.string();
    }
    throw std::runtime_error("look-at-llama is not beside this program: install the package again");
}

std::string quoted(const std::string& word) {
    std::string text = "'";
    for (const char c : word) text += c == '\'' ? std::string("'\\''") : std::string(1, c);
    return text + "'";
}

}  // namespace

std::string llama_library_folder(const std::string& what, const std::string& installation) {
    std::error_code error;
    if (!fs::exists(installation, error)) throw std::runtime_error(what + ": there is no " + installation);
    if (!fs::is_directory(installation, error))
        throw std::runtime_error(what + ": " + installation + " is no folder");
    if (const auto folder = libraries_below(installation)) return fs::canonical(*folder).string();
    throw std::runtime_error(
        what + ": no libggml-base.so in " + installation +
        " nor where installations have it below; if ggml is linked into the programs there, "
        "they load no plugins");
}

std::vector<std::string> installed_llama_folders() {
    std::vector<fs::path> places = {environment("MIXED_KV_LLAMA_LIB_DIR"),
                                    fs::path(find_backend_paths().llama_library).parent_path()};
    std::error_code ignored;
    for (fs::path folder = fs::current_path(ignored); !folder.empty(); folder = folder.parent_path()) {
        places.push_back(folder / "node_modules/@node-llama-cpp/linux-x64/bins/linux-x64");
        if (folder == folder.parent_path()) break;
    }
    const std::string path = environment("PATH");
    for (std::size_t at = 0; at < path.size();) {
        const std::size_t end = std::min(path.find(':', at), path.size());
        const fs::path server = fs::canonical(path.substr(at, end - at) + "/llama-server", ignored);
        if (!server.empty()) {
            places.push_back(server.parent_path());
            places.push_back(server.parent_path().parent_path());
        }
        at = end + 1;
    }
    for (const char* place :
         {"/opt/llama.cpp", "/opt/llama", "/app", "/usr/local", "/usr", "/home/linuxbrew/.linuxbrew"}) {
        places.emplace_back(place);
    }
    std::vector<std::string> found;
    for (const fs::path& place : places) {
        if (place.empty()) continue;
        const std::optional<fs::path> folder = libraries_below(place);
        if (!folder) continue;
        const std::string name = fs::canonical(*folder, ignored).string();
        if (std::find(found.begin(), found.end(), name) == found.end()) found.push_back(name);
    }
    return found;
}

nlohmann::ordered_json look_at_llama(const std::string& folder, const std::string& plugin) {
    const std::string command = quoted(helper()) + " " + quoted(folder) + " " + quoted(plugin);
    std::FILE* pipe = popen(command.c_str(), "r");
    if (pipe == nullptr) throw std::runtime_error("cannot start look-at-llama");
    std::string text;
    std::array<char, 4096> part;
    while (const std::size_t n = std::fread(part.data(), 1, part.size(), pipe)) text.append(part.data(), n);
    const int status = pclose(pipe);
    auto facts = nlohmann::ordered_json::parse(text, nullptr, false);
    if (status != 0 || facts.is_discarded()) {
        const int code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
        throw std::runtime_error(
            fmt::format("the libraries in {} end the process that loads them (status {})", folder, code));
    }
    return facts;
}

}  // namespace mixed_kv::tools
