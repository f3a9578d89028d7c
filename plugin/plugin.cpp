// Entry point: what the host's loader finds, and the check that this plugin fits this host.
#include <algorithm>
#include <cctype>
#include <cstdio>
#include <cstring>
#include <iterator>
#include <map>
#include <mutex>
#include <optional>
#include <sstream>
#include <string>

#include "api.h"
#include "border.h"
#include "device.h"
#include "graphs.h"
#include "kernels/contract.h"
#include "log.h"
#include "mixed_kv/error.h"
#include "mixed_kv/isa.h"

namespace mixed_kv::plugin {
namespace {

struct LoadedSettings {
    Settings settings;
    std::string refusal;  // why the environment was refused; empty when it was not
    std::string isa = "none";
    LoadedSettings() {
        try {
            settings = Settings::from_environment();
            isa = active_kernel_set().name;
        } catch (const std::bad_alloc&) {
            throw;  // not the settings' fault: the next one who asks tries again
        } catch (const std::exception& e) {
            refusal = e.what();
        }
    }
};

const LoadedSettings& loaded() {
    static const LoadedSettings instance;
    return instance;
}

std::optional<Settings> override_settings;
const kernels::KernelSet* override_kernels = nullptr;

const char* reg_name(ggml_backend_reg_t) { return MIXED_KV_REG_NAME; }
size_t device_count(ggml_backend_reg_t) { return 1; }
ggml_backend_dev_t get_device(ggml_backend_reg_t, size_t) { return device(); }

// -sm row: rows of weights split over devices. We hold no weights, so the mode means nothing here, as on a
// machine without a GPU; a device without this function is refused.
ggml_backend_buffer_type_t split_buffer_type(int, const float*) { return nullptr; }

void* get_proc_address(ggml_backend_reg_t, const char* name) {
    if (std::strcmp(name, "ggml_backend_set_n_threads") == 0) return reinterpret_cast<void*>(set_n_threads);
    if (std::strcmp(name, "ggml_backend_set_abort_callback") == 0)
        return reinterpret_cast<void*>(set_abort_callback);
    if (std::strcmp(name, "ggml_backend_split_buffer_type") == 0)
        return reinterpret_cast<void*>(split_buffer_type);
    if (std::strcmp(name, "mixed_kv_get_api") == 0) return reinterpret_cast<void*>(api);
    return nullptr;
}

// A plugin fits exactly one ggml: structs and op numbers changed while GGML_BACKEND_API_VERSION stayed the
// same.
bool fits_host() {
    const bool same = std::strcmp(ggml_version(), MIXED_KV_GGML_VERSION) == 0 &&
                      std::strcmp(ggml_commit(), MIXED_KV_GGML_COMMIT) == 0;
    if (!same) {
        // Not through the host's logger: its interface is one of the things that may differ.
        std::fprintf(stderr,
                     "mixed-kv: declined: built for ggml %s (%s), this host has ggml %s (%s); rebuild the "
                     "plugin against it "
                     "(-DMIXED_KV_LLAMA_ROOT=...)\n",
                     MIXED_KV_GGML_VERSION, MIXED_KV_GGML_COMMIT, ggml_version(), ggml_commit());
    }
    return same;
}

}  // namespace

std::mutex& override_mutex() {
    static std::mutex mutex;
    return mutex;
}

Settings settings() {
    {
        std::lock_guard<std::mutex> lock(override_mutex());
        if (override_settings) return *override_settings;
    }
    if (!loaded().refusal.empty()) throw Error(loaded().refusal);
    return loaded().settings;
}

void configure(const std::string& text) {
    // Each "name=value" stands for the environment variable GGML_MIXED_KV_NAME.
    std::map<std::string, std::string> variables;
    const kernels::KernelSet* kernels = nullptr;
    std::istringstream items(text);
    std::string name;
    for (std::string item; std::getline(items, item, ',');) {
        // A list of layers has commas of its own; what follows one begins with a layer's number.
        if (name == "LAYERS" && !item.empty() && (item[0] == '-' || std::isdigit((unsigned char)item[0]))) {
            variables["GGML_MIXED_KV_LAYERS"] += ',' + item;
            continue;
        }
        const auto equals = item.find('=');
        name = item.substr(0, equals);
        std::transform(name.begin(), name.end(), name.begin(),
                       [](unsigned char c) { return char(std::toupper(c)); });
        if (name == "ISA" && equals != std::string::npos) {
            kernels = &kernel_set(item.substr(equals + 1));
            continue;
        }
        const char* const known[] = {"PRESET", "WINDOW", "SINKS",       "K",       "V",
                                     "LAYERS", "BITS",   "CALIBRATION", "LIMIT_MB"};
        if (equals == std::string::npos ||
            std::find(std::begin(known), std::end(known), name) == std::end(known)) {
            throw Error("'" + item +
                        "' is not a cache setting: preset=NAME, window=N, sinks=N, k=FORMAT, v=FORMAT, "
                        "layers=RULES, bits=NUMBER, calibration=FILE, limit_mb=N and isa=NAME are");
        }
        variables[name == "PRESET" ? "GGML_MIXED_KV" : "GGML_MIXED_KV_" + name] = item.substr(equals + 1);
    }
    std::optional<Settings> parsed;
    if (!text.empty()) {
        parsed = Settings::from_environment([&](const char* variable) -> std::optional<std::string> {
            const auto found = variables.find(variable);
            if (found == variables.end()) return std::nullopt;
            return found->second;
        });
    }
    std::lock_guard<std::mutex> lock(override_mutex());
    override_settings = parsed;
    override_kernels = kernels;
}

const kernels::KernelSet& kernel_set_in_use() {
    std::lock_guard<std::mutex> lock(override_mutex());
    return override_kernels != nullptr ? *override_kernels : active_kernel_set();
}

const char* active_isa_name() {
    std::lock_guard<std::mutex> lock(override_mutex());
    return override_kernels != nullptr ? override_kernels->name : loaded().isa.c_str();
}

ggml_backend_reg_t registration() {
    static ggml_backend_reg reg = {
        .api_version = GGML_BACKEND_API_VERSION,
        .iface =
            {
                .get_name = reg_name,
                .get_device_count = device_count,
                .get_device = get_device,
                .get_proc_address = get_proc_address,
            },
        .context = nullptr,
    };
    return &reg;
}

}  // namespace mixed_kv::plugin

// May be called more than once in a process; the registration is the same.
extern "C" __attribute__((visibility("default"))) ggml_backend_reg_t ggml_backend_init(void) {
    using namespace mixed_kv::plugin;
    if (!fits_host()) return nullptr;
    return at_border("not loaded", ggml_backend_reg_t(nullptr), [] {
        prepare_graphs();
        install_hooks();
        if (!loaded().refusal.empty()) {
            // Loaded all the same: going on silently with another cache than the one asked for would ignore
            // the setting. Creating a context on our device fails with this line.
            MIXED_KV_LOG(ERROR, "%s", loaded().refusal.c_str());
        }
        return registration();
    });
}
