// mixed-kv-doctor --llama FOLDER: another installation of llama.cpp, looked at by a process of its own.
#include <fmt/format.h>
#include <sys/wait.h>

#include <array>
#include <cstdio>
#include <filesystem>
#include <stdexcept>

#include "mixed-kv-doctor/examine.h"

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

fs::path find_libraries(const fs::path& installation) {
    std::error_code error;
    if (!fs::exists(installation, error)) {
        throw std::runtime_error("--llama: there is no " + installation.string());
    }
    if (!fs::is_directory(installation, error)) {
        throw std::runtime_error("--llama: " + installation.string() + " is no folder");
    }
    for (const char* below : kFolders) {
        const fs::path folder = (installation / below).lexically_normal();
        if (holds_ggml(folder)) return fs::absolute(folder);
    }
    throw std::runtime_error(
        "--llama: no libggml-base.so in " + installation.string() +
        " nor where installations have it below; if ggml is linked into the programs there, "
        "they load no plugins");
}

fs::path helper() {
    std::error_code ignored;
    const fs::path bin = fs::read_symlink("/proc/self/exe", ignored).parent_path();
    for (const fs::path& place : {bin / "look-at-llama", bin.parent_path() / MIXED_KV_INSTALL_LIBDIR /
                                                             "ggml-mixed-kv" / "look-at-llama"}) {
        if (fs::exists(place, ignored)) return place;
    }
    throw std::runtime_error("look-at-llama is not beside this program: install the package again");
}

std::string quoted(const std::string& word) {
    std::string text = "'";
    for (const char c : word) text += c == '\'' ? std::string("'\\''") : std::string(1, c);
    return text + "'";
}

nlohmann::ordered_json look(const fs::path& folder, const std::string& plugin) {
    const std::string command =
        quoted(helper().string()) + " " + quoted(folder.string()) + " " + quoted(plugin);
    std::FILE* pipe = popen(command.c_str(), "r");
    if (pipe == nullptr) throw std::runtime_error("cannot start look-at-llama");
    std::string text;
    std::array<char, 4096> part;
    while (const std::size_t n = std::fread(part.data(), 1, part.size(), pipe)) text.append(part.data(), n);
    const int status = pclose(pipe);
    const auto facts = nlohmann::ordered_json::parse(text, nullptr, false);
    if (status != 0 || facts.is_discarded()) {
        const int code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
        throw std::runtime_error(fmt::format(
            "the libraries in {} end the process that loads them (status {})", folder.string(), code));
    }
    return facts;
}

}  // namespace

void examine_llama(const std::string& installation, Diagnosis& diagnosis) {
    const BackendPaths paths = find_backend_paths();
    if (paths.plugin.empty()) {
        throw std::runtime_error(
            "no libggml-mixed-kv.so beside this program, and GGML_BACKEND_PATH is not set");
    }
    const fs::path folder = find_libraries(installation);
    const nlohmann::ordered_json facts = look(folder, fs::absolute(paths.plugin).string());
    const std::string fault = facts.value("fault", "");
    diagnosis.ggml = {.fits = facts.value("fits", false),
                      .version = facts.value("ggml_version", ""),
                      .commit = facts.value("ggml_commit", ""),
                      .api_version = facts.value("api_version", -1)};
    Finding finding = {.key = "llama_cpp", .heading = "llama.cpp", .facts = facts};
    finding.facts["folder"] = folder.string();
    finding.facts["plugin"] = paths.plugin;
    finding.lines.push_back(folder.string());
    if (!diagnosis.ggml.version.empty()) {
        finding.lines.push_back(fmt::format(
            "ggml {} ({}), backend API {}", diagnosis.ggml.version, diagnosis.ggml.commit,
            diagnosis.ggml.api_version < 0 ? "unknown" : std::to_string(diagnosis.ggml.api_version)));
    }
    if (!fault.empty()) {
        diagnosis.problems.push_back({fault, "install that llama.cpp again, or name another folder"});
    } else if (!facts.value("has_cpu_backend", false)) {
        diagnosis.problems.push_back(
            {"no CPU backend in " + folder.string(),
             "name the folder that has libggml-cpu-*.so, or install that llama.cpp again"});
    }
    if (diagnosis.ggml.fits) {
        finding.lines.push_back("fits: GGML_BACKEND_PATH=" + fs::absolute(paths.plugin).string());
    } else if (fault.empty()) {
        const std::string said = facts.value("said", "");
        diagnosis.problems.push_back(
            {said.empty() ? "the plugin does not load there" : said,
             "use a llama.cpp of docs/versions.md's table, or build the plugin for this one: "
             "cmake -B build -DMIXED_KV_LLAMA_ROOT=" +
                 installation + " && cmake --build build"});
    }
    diagnosis.findings.push_back(std::move(finding));
}

}  // namespace mixed_kv::tools
