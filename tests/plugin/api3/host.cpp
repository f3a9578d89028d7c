// A ggml whose buffer types have the layout of backend API 3: what reads them is defined here, the rest is
// the real ggml's that this library is linked with. Loads a plugin as such a host would.
#include <dlfcn.h>

#include "ggml-backend-impl.h"

extern "C" {

ggml_backend_dev_t ggml_backend_buft_get_device(ggml_backend_buffer_type_t buft) { return buft->device; }
const char* ggml_backend_buft_name(ggml_backend_buffer_type_t buft) { return buft->iface.get_name(buft); }
size_t ggml_backend_buft_get_alignment(ggml_backend_buffer_type_t buft) {
    return buft->iface.get_alignment(buft);
}
size_t ggml_backend_buft_get_max_size(ggml_backend_buffer_type_t buft) {
    return buft->iface.get_max_size(buft);
}
bool ggml_backend_buft_is_host(ggml_backend_buffer_type_t buft) { return buft->iface.is_host(buft); }

// The registration that the plugin gives, or null.
__attribute__((visibility("default"))) void* load_plugin_as_api_3(const char* path) {
    void* plugin = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (plugin == nullptr) return nullptr;
    const auto init = reinterpret_cast<void* (*)()>(dlsym(plugin, "ggml_backend_init"));
    void* volatile registration =
        init == nullptr ? nullptr : init();  // no tail call: the caller must be this library
    return registration;
}
}
