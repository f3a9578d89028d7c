#pragma once

#include <cstddef>
#include <string>

struct ggml_backend_reg;

namespace mixed_kv::plugin {

// A plugin file as the front of a package sees it (front.cpp): exported as `mixed_kv_variant` beside
// ggml_backend_init. Knows nothing of ggml, so that one front serves the plugins of all its interfaces.
enum class Fit { fits, other_interface, refused };

struct Variant {
    const char* version;  // of this project: plugins of another one are left alone
    // Which interface of ggml it is for, for people.
    const char* (*interface)();
    // caller: an address in the code that called ggml_backend_init. Fills registration where it fits; else
    // why, in words that go on after "declined: ".
    Fit (*init)(const void* caller, ggml_backend_reg** registration, char* why, std::size_t size);
};

constexpr const char* kVariantSymbol = "mixed_kv_variant";

// The one line of a plugin that does not work here. supported: for hosts of another interface, those that are
// there.
inline std::string decline_line(const std::string& why, const std::string& supported) {
    const std::string line = "mixed-kv: declined: " + why;
    if (supported.empty()) return line;
    return line + "; this plugin is for " + supported +
           "; to build one for this host: cmake -B build -DMIXED_KV_LLAMA_ROOT=PATH && cmake --build build";
}

}  // namespace mixed_kv::plugin
