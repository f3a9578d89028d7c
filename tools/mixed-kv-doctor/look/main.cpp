// look-at-llama FOLDER PLUGIN: which ggml lies in a folder, and whether the plugin fits it; one JSON object
// on stdout.
//
// A program of its own, linked with no ggml: mixed-kv-doctor has one in its process already, and a second of
// the same name would not be loaded beside it. What goes wrong in a strange library ends this process, not
// the doctor.
#include <dlfcn.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <regex>
#include <string>
#include <vector>

#include "common/library_file.h"

namespace {

namespace fs = std::filesystem;

// libggml.so, libggml.so.0, libggml.v0.5.0.so, libggml.b10361.so: the shortest of those that are there.
std::string find_library(const fs::path& folder, const std::string& stem) {
    const std::regex names("lib" + stem + R"((\.[vb][0-9.]+)?\.so(\.[0-9]+)*)");
    std::vector<std::string> found;
    std::error_code ignored;
    for (const fs::directory_entry& entry : fs::directory_iterator(folder, ignored)) {
        if (std::regex_match(entry.path().filename().string(), names)) found.push_back(entry.path().string());
    }
    std::sort(found.begin(), found.end(), [](const auto& a, const auto& b) {
        return a.size() != b.size() ? a.size() < b.size() : a < b;
    });
    return found.empty() ? "" : found.front();
}

struct Fault {
    std::string what;
};

void* open(const std::string& path) {
    if (const std::string why = mixed_kv::tools::why_no_library(path); !why.empty())
        throw Fault{path + " " + why};
    void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) throw Fault{std::string("cannot be loaded: ") + dlerror()};
    return library;
}

template <typename Function>
Function function(void* library, const char* name) {
    return reinterpret_cast<Function>(dlsym(library, name));
}

// What is written to stderr meanwhile.
template <typename Call>
std::string heard(Call&& call) {
    std::fflush(stderr);
    const int memory = memfd_create("said", 0), before = dup(STDERR_FILENO);
    dup2(memory, STDERR_FILENO);
    call();
    std::fflush(stderr);
    dup2(before, STDERR_FILENO);
    std::string text(std::size_t(std::max<off_t>(0, lseek(memory, 0, SEEK_END))), '\0');
    const ssize_t n = pread(memory, text.data(), text.size(), 0);
    text.resize(std::size_t(std::max<ssize_t>(0, n)));
    close(memory);
    close(before);
    return text;
}

nlohmann::ordered_json look(const fs::path& folder, const std::string& plugin) {
    const std::string base_file = find_library(folder, "ggml-base"), ggml_file = find_library(folder, "ggml");
    if (base_file.empty() && ggml_file.empty())
        throw Fault{"no libggml-base and no libggml in " + folder.string()};
    if (base_file.empty() || ggml_file.empty()) {
        throw Fault{"half of an installation: " + (base_file.empty() ? ggml_file : base_file) + " without " +
                    (base_file.empty() ? "libggml-base" : "libggml")};
    }
    nlohmann::ordered_json facts = {{"library", base_file},
                                    {"ggml_library", ggml_file},
                                    {"llama_library", find_library(folder, "llama")}};
    // The base first: wherever libggml would look for it, it gets the one of its folder.
    void* base = open(base_file);
    void* ggml = open(ggml_file);
    using text_t = const char* (*)();
    if (const auto version = function<text_t>(base, "ggml_version")) facts["ggml_version"] = version();
    if (const auto commit = function<text_t>(base, "ggml_commit")) facts["ggml_commit"] = commit();

    using log_t = void (*)(void (*)(int, const char*, void*), void*);
    using load_all_t = void (*)(const char*);
    using load_t = void* (*)(const char*);
    using by_type_t = void* (*)(int);
    using registration_t = void* (*)(void*);
    const auto set_log = function<log_t>(base, "ggml_log_set");
    const auto load_all = function<load_all_t>(ggml, "ggml_backend_load_all_from_path");
    const auto load = function<load_t>(ggml, "ggml_backend_load");
    const auto by_type = function<by_type_t>(ggml, "ggml_backend_dev_by_type");
    const auto registration = function<registration_t>(base, "ggml_backend_dev_backend_reg");
    if (set_log == nullptr || load_all == nullptr || load == nullptr || by_type == nullptr ||
        registration == nullptr)
        throw Fault{ggml_file + " is of a ggml before backends could be loaded"};
    set_log([](int, const char*, void*) {}, nullptr);
    unsetenv("GGML_BACKEND_PATH");
    load_all(folder.c_str());
    constexpr int kCpu = 0;  // GGML_BACKEND_DEVICE_TYPE_CPU of every ggml
    if (void* cpu = by_type(kCpu)) facts["api_version"] = *static_cast<const int*>(registration(cpu));
    facts["has_cpu_backend"] = by_type(kCpu) != nullptr;
    if (plugin.empty()) return facts;
    if (const std::string why = mixed_kv::tools::why_no_library(plugin); !why.empty())
        throw Fault{"the plugin " + plugin + " " + why};
    bool fits = false;
    std::string said = heard([&] { fits = load(plugin.c_str()) != nullptr; });
    while (!said.empty() && said.back() == '\n') said.pop_back();
    facts["fits"] = fits;
    facts["said"] = said;
    return facts;
}

}  // namespace

int main(int argc, char** argv) {
    if (argc < 2 || argc > 3) {
        std::fprintf(stderr, "usage: look-at-llama FOLDER [PLUGIN]\n");
        return 2;
    }
    nlohmann::ordered_json facts;
    try {
        facts = look(argv[1], argc == 3 ? argv[2] : "");
    } catch (const Fault& fault) {
        facts = {{"fault", fault.what}};
    } catch (const std::exception& error) {
        facts = {{"fault", error.what()}};
    }
    const std::string text = facts.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
    const bool written = std::printf("%s\n", text.c_str()) > 0 && std::fflush(stdout) == 0;
    _exit(written ? 0 : 1);  // strange libraries need not clean up
}
