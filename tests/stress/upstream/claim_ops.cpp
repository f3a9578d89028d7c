// For test-backend-ops, loaded with LD_PRELOAD: answers "which ops can the plugin's device run?" with what
// the CPU can.
//
// The plugin claims an op only where it sees its own memory, because llama.cpp must keep everything else on
// the CPU; test-backend-ops asks before it has allocated anything and would skip every case. What then runs
// is the plugin's backend on its own buffers: they are not caches, so ops are delegated to the host's CPU
// backend.
#include <dlfcn.h>

#include <cstring>

#include "ggml-backend.h"

extern "C" bool ggml_backend_supports_op(ggml_backend_t backend, const ggml_tensor* op) {
    static const auto original =
        reinterpret_cast<decltype(&ggml_backend_supports_op)>(dlsym(RTLD_NEXT, "ggml_backend_supports_op"));
    ggml_backend_dev_t device = ggml_backend_get_device(backend);
    if (device != nullptr && std::strcmp(ggml_backend_dev_name(device), "MixedKV") == 0)
        return ggml_backend_dev_supports_op(ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU), op);
    return original(backend, op);
}
