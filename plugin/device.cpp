// The device: one IGPU, so that llama.cpp selects it by itself where there is no discrete GPU, gives it the
// KV cache and keeps flash attention on.
#include "device.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <exception>

#include "fitting.h"
#include "ggml_contract/op_support.h"
#include "kv_buffer.h"
#include "log.h"
#include "memory_estimate.h"

namespace mixed_kv::plugin {
namespace {

const char* get_name(ggml_backend_dev_t) { return MIXED_KV_DEVICE_NAME; }

const char* get_description(ggml_backend_dev_t) { return "mixed-precision KV cache in system memory"; }

// MemAvailable and MemTotal: what the cache and everything else can really get.
void get_system_memory(size_t* free, size_t* total) {
    *free = *total = 0;
    std::FILE* file = std::fopen("/proc/meminfo", "r");
    if (file == nullptr) return;
    char line[256];
    while (std::fgets(line, sizeof line, file) != nullptr) {
        unsigned long long kib = 0;
        if (std::sscanf(line, "MemTotal: %llu kB", &kib) == 1) *total = kib * 1024;
        if (std::sscanf(line, "MemAvailable: %llu kB", &kib) == 1) *free = kib * 1024;
    }
    std::fclose(file);
}

// In FP16-equivalent bytes: llama.cpp counts a cache on this device at its declared F16 size, in its
// automatic context sizes (--fit) and in what it prints, so that is the unit in which memory is free here.
void get_memory(ggml_backend_dev_t, size_t* free, size_t* total) {
    get_system_memory(free, total);
    try {
        const Settings now = settings();
        if (const auto measured = free_for_counted(*free, now)) {
            *free = *measured;
            *total = std::max(*total, *free);
            return;
        }
        const double factor = f16_equivalent(now);
        *free = size_t(double(memory_for_caches(*free, now)) * factor);
        const double limit = now.budget ? now.budget.bytes(double(*total)) : now.limit_mb * 1048576.0;
        *total = size_t((limit == 0 ? double(*total) : std::min(double(*total), limit)) * factor);
    } catch (const std::exception&) {  // refused settings: no context will be created
    }
}

// Where a ggml asks for it (since 0.20), the loader would stop mapping model files without it.
template <typename Caps>
void allow_mapping(Caps& caps) {
    if constexpr (requires { caps.mmap_support; }) caps.mmap_support = true;
}

enum ggml_backend_dev_type get_type(ggml_backend_dev_t) { return GGML_BACKEND_DEVICE_TYPE_IGPU; }

void get_props(ggml_backend_dev_t dev, ggml_backend_dev_props* props) {
    *props = {};
    props->name = get_name(dev);
    props->description = get_description(dev);
    props->type = get_type(dev);
    get_memory(dev, &props->memory_free, &props->memory_total);
    allow_mapping(props->caps);
}

ggml_backend_t init_backend(ggml_backend_dev_t dev, const char*) { return new_backend(dev); }

ggml_backend_buffer_type_t get_buffer_type(ggml_backend_dev_t) { return buffer_type(); }

bool supports_op(ggml_backend_dev_t, const ggml_tensor* op) { return supports(op); }

// Host buffers too: queries, masks, indices and new rows are then read in place.
bool supports_buft(ggml_backend_dev_t, ggml_backend_buffer_type_t type) {
    return type == buffer_type() || ggml_backend_buft_is_host(type);
}

}  // namespace

ggml_backend_dev_t device() {
    static ggml_backend_device dev = {
        .iface =
            {
                .get_name = get_name,
                .get_description = get_description,
                .get_memory = get_memory,
                .get_type = get_type,
                .get_props = get_props,
                .init_backend = init_backend,
                .get_buffer_type = get_buffer_type,
                .get_host_buffer_type = nullptr,
                .buffer_from_host_ptr = nullptr,
                .supports_op = supports_op,
                .supports_buft = supports_buft,
                .offload_op = nullptr,
                .event_new = nullptr,
                .event_free = nullptr,
                .event_synchronize = nullptr,
            },
        .reg = registration(),
        .context = nullptr,
    };
    return &dev;
}

}  // namespace mixed_kv::plugin
