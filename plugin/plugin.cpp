// The registration, and the settings of the process.
#include <cstdio>
#include <cstring>
#include <mutex>
#include <optional>
#include <string>

#include "api.h"
#include "device.h"
#include "kernels/contract.h"
#include "log.h"
#include "mixed_kv/error.h"
#include "mixed_kv/isa.h"
#include "mixed_kv/setting_table.h"

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
    std::optional<Settings> parsed;
    const kernels::KernelSet* kernels = nullptr;
    if (!text.empty()) {
        const auto given = settings_of_text(text);
        const auto get = [&given](const char* variable) -> std::optional<std::string> {
            const auto found = given.find(variable);
            return found == given.end() ? std::nullopt : std::optional(found->second);
        };
        parsed = Settings::from_environment(get);
        if (const auto isa = get("MIXED_KV_ISA")) kernels = &kernel_set(*isa);
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

const std::string& settings_refusal() { return loaded().refusal; }

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
