// Entry points: what the host's loader finds, what the front of a package finds, and the check that this
// plugin fits this host.
#include <cstdio>
#include <exception>
#include <mutex>
#include <string>

#include "border.h"
#include "device.h"
#include "front/variant.h"
#include "ggml_contract/fingerprint.h"
#include "ggml_contract/host_symbols.h"
#include "graphs.h"
#include "log.h"

namespace mixed_kv::plugin {
namespace {

// Whether this plugin works in the host that calls from there. The interface decides, not version and commit:
// it is the same over many releases, and builders of one release give it commits of their own.
Fit fit(const void* caller, std::string& why) {
    static std::mutex mutex;
    const std::lock_guard<std::mutex> lock(mutex);
    if (why = bind_host(caller); !why.empty()) return Fit::refused;
    if (why = difference_from_host(); !why.empty()) {
        why = std::string("this host has ggml ") + ggml_version() + " (" + ggml_commit() + "), " + why;
        unbind_host();
        return Fit::other_interface;
    }
    if (ggml_backend_reg_t other = ggml_backend_reg_by_name(MIXED_KV_REG_NAME);
        other != nullptr && other != registration()) {
        why = "another mixed-kv plugin is loaded already; name one of them only";
        return Fit::refused;
    }
    return Fit::fits;
}

// Loaded all the same where the settings were refused: going on silently with another cache than the one
// asked for would ignore them. Creating a context on our device fails with this line.
ggml_backend_reg_t ready() {
    return at_border("not loaded", ggml_backend_reg_t(nullptr), [] {
        prepare_graphs();
        install_hooks();
        if (!settings_refusal().empty()) MIXED_KV_LOG(ERROR, "%s", settings_refusal().c_str());
        return registration();
    });
}

const char* interface_name() {
    static const std::string name = supported_interface();
    return name.c_str();
}

Fit init(const void* caller, ggml_backend_reg** registration, char* why, std::size_t size) {
    try {
        std::string reason;
        const Fit result = fit(caller, reason);
        std::snprintf(why, size, "%s", reason.c_str());
        if (result == Fit::fits) *registration = ready();
        return result;
    } catch (const std::exception& e) {
        std::snprintf(why, size, "%s", reason_of(e));
        return Fit::refused;
    }
}

}  // namespace
}  // namespace mixed_kv::plugin

extern "C" __attribute__((visibility("default"))) const mixed_kv::plugin::Variant mixed_kv_variant;
const mixed_kv::plugin::Variant mixed_kv_variant = {MIXED_KV_VERSION, mixed_kv::plugin::interface_name,
                                                    mixed_kv::plugin::init};

// May be called more than once in a process; the registration is the same.
extern "C" __attribute__((visibility("default"))) ggml_backend_reg_t ggml_backend_init(void) {
    using namespace mixed_kv::plugin;
    try {
        std::string why;
        const Fit result = fit(__builtin_return_address(0), why);
        if (result == Fit::fits) return ready();
        // Not through the host's logger: its interface is one of the things that may differ.
        const std::string line = decline_line(why, result == Fit::refused ? "" : interface_name());
        std::fprintf(stderr, "%s\n", line.c_str());
    } catch (const std::exception& e) {
        std::fprintf(stderr, "mixed-kv: declined: %s\n", reason_of(e));
    }
    return nullptr;
}
