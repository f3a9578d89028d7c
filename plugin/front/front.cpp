// libggml-mixed-kv.so of a package: one name for GGML_BACKEND_PATH, whatever ggml the host has. Beside it, in
// ggml-mixed-kv/, lies a plugin for each interface of ggml; the first that fits the host answers.
#include <dlfcn.h>

#include <algorithm>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <mutex>
#include <string>
#include <vector>

#include "common/library_file.h"
#include "front/variant.h"

namespace mixed_kv::plugin {
namespace {

namespace fs = std::filesystem;

fs::path folder_of_plugins() {
    Dl_info info;
    if (dladdr(reinterpret_cast<const void*>(&folder_of_plugins), &info) == 0) return {};
    std::error_code ignored;
    const fs::path real = fs::weakly_canonical(info.dli_fname, ignored);
    return real.parent_path() / "ggml-mixed-kv";
}

// The newest interface first: most hosts have it.
std::vector<fs::path> plugin_files(const fs::path& folder) {
    std::vector<fs::path> files;
    std::error_code ignored;
    for (const fs::directory_entry& entry : fs::directory_iterator(folder, ignored)) {
        if (entry.path().extension() == ".so") files.push_back(entry.path());
    }
    std::sort(files.rbegin(), files.rend());
    return files;
}

const Variant* open(const fs::path& file, std::string& fault) {
    if (fault = tools::why_no_library(file); !fault.empty()) return nullptr;
    void* library = dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) {
        fault = std::string("cannot be loaded: ") + dlerror();
        return nullptr;
    }
    const auto* variant = static_cast<const Variant*>(dlsym(library, kVariantSymbol));
    if (variant != nullptr && std::string(variant->version) == MIXED_KV_VERSION) return variant;
    fault = variant == nullptr
                ? "is no plugin of this package"
                : std::string("is of version ") + variant->version + ", this is " MIXED_KV_VERSION;
    dlclose(library);
    return nullptr;
}

// Null with the reason in line.
ggml_backend_reg* choose(const void* caller, std::string& line) {
    const fs::path folder = folder_of_plugins();
    std::string why, supported, faults;
    for (const fs::path& file : plugin_files(folder)) {
        std::string fault;
        const Variant* variant = open(file, fault);
        if (variant == nullptr) {
            faults += (faults.empty() ? "" : "; ") + file.string() + " " + fault;
            continue;
        }
        ggml_backend_reg* registration = nullptr;
        char reason[512] = "";
        switch (variant->init(caller, &registration, reason, sizeof reason)) {
            case Fit::fits:
                return registration;
            case Fit::refused:
                line = decline_line(reason, "");
                return nullptr;
            case Fit::other_interface:
                if (why.empty()) why = reason;
                supported += (supported.empty() ? "" : " and ") + std::string(variant->interface());
        }
    }
    if (faults.empty() && supported.empty()) faults = "there is no plugin in " + folder.string();
    if (!faults.empty()) faults += ": install the package again";
    line = supported.empty() ? decline_line(faults, "")
                             : decline_line(why, supported) + (faults.empty() ? "" : "; " + faults);
    return nullptr;
}

}  // namespace
}  // namespace mixed_kv::plugin

extern "C" __attribute__((visibility("default"))) ggml_backend_reg* ggml_backend_init(void) {
    static std::mutex mutex;
    const std::lock_guard<std::mutex> lock(mutex);
    std::string line;
    try {
        if (ggml_backend_reg* registration = mixed_kv::plugin::choose(__builtin_return_address(0), line))
            return registration;
        std::fprintf(stderr, "%s\n", line.c_str());
    } catch (const std::exception& e) {
        std::fprintf(stderr, "mixed-kv: declined: %s\n", e.what());
    }
    return nullptr;
}
