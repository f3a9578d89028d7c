#include "ggml_contract/host_symbols.h"

#include <dlfcn.h>

#include <mutex>

// Every function of ggml that the plugin calls. One that is missing here is an undefined symbol when the
// plugin is linked; one that the host lacks is a reason to decline.
#define MIXED_KV_HOST_FUNCTIONS(X)       \
    X(ggml_backend_buffer_clear)         \
    X(ggml_backend_buffer_get_base)      \
    X(ggml_backend_buffer_get_size)      \
    X(ggml_backend_buffer_get_type)      \
    X(ggml_backend_buffer_get_usage)     \
    X(ggml_backend_buffer_init)          \
    X(ggml_backend_buffer_init_tensor)   \
    X(ggml_backend_buffer_reset)         \
    X(ggml_backend_buft_alloc_buffer)    \
    X(ggml_backend_buft_get_alignment)   \
    X(ggml_backend_buft_get_alloc_size)  \
    X(ggml_backend_buft_get_device)      \
    X(ggml_backend_buft_get_max_size)    \
    X(ggml_backend_buft_is_host)         \
    X(ggml_backend_buft_name)            \
    X(ggml_backend_cpu_buffer_type)      \
    X(ggml_backend_dev_backend_reg)      \
    X(ggml_backend_dev_buffer_type)      \
    X(ggml_backend_dev_by_type)          \
    X(ggml_backend_dev_description)      \
    X(ggml_backend_dev_get_props)        \
    X(ggml_backend_dev_init)             \
    X(ggml_backend_dev_name)             \
    X(ggml_backend_dev_offload_op)       \
    X(ggml_backend_dev_supports_buft)    \
    X(ggml_backend_dev_supports_op)      \
    X(ggml_backend_dev_type)             \
    X(ggml_backend_free)                 \
    X(ggml_backend_get_device)           \
    X(ggml_backend_graph_compute)        \
    X(ggml_backend_graph_compute_async)  \
    X(ggml_backend_guid)                 \
    X(ggml_backend_name)                 \
    X(ggml_backend_reg_by_name)          \
    X(ggml_backend_reg_dev_count)        \
    X(ggml_backend_reg_get_proc_address) \
    X(ggml_backend_reg_name)             \
    X(ggml_backend_synchronize)          \
    X(ggml_backend_tensor_get)           \
    X(ggml_backend_tensor_memset)        \
    X(ggml_backend_tensor_set)           \
    X(ggml_commit)                       \
    X(ggml_custom_4d)                    \
    X(ggml_free)                         \
    X(ggml_get_data)                     \
    X(ggml_get_mem_size)                 \
    X(ggml_get_name)                     \
    X(ggml_graph_add_node)               \
    X(ggml_graph_clear)                  \
    X(ggml_graph_n_nodes)                \
    X(ggml_graph_node)                   \
    X(ggml_graph_overhead_custom)        \
    X(ggml_guid_matches)                 \
    X(ggml_init)                         \
    X(ggml_is_empty)                     \
    X(ggml_log_get)                      \
    X(ggml_nbytes)                       \
    X(ggml_nelements)                    \
    X(ggml_new_graph_custom)             \
    X(ggml_op_name)                      \
    X(ggml_set_abort_callback)           \
    X(ggml_set_input)                    \
    X(ggml_tensor_overhead)              \
    X(ggml_threadpool_params_default)    \
    X(ggml_type_name)                    \
    X(ggml_type_size)                    \
    X(ggml_used_mem)                     \
    X(ggml_version)

// A function of that name for the linker, which jumps to where the host has it. In assembly, so that the
// declarations of ggml's headers stay the only ones, variable arguments included.
#if defined(__x86_64__)
#define MIXED_KV_JUMP(name) "jmp *mixed_kv_host_" #name "(%rip)\n"
#elif defined(__aarch64__)
#define MIXED_KV_JUMP(name)          \
    "adrp x16, mixed_kv_host_" #name \
    "\n"                             \
    "ldr x16, [x16, :lo12:mixed_kv_host_" #name "]\nbr x16\n"
#else
#error "plugin: say here how this CPU jumps to an address in memory"
#endif

#define MIXED_KV_FORWARD(name)                                                                  \
    __attribute__((visibility("hidden"))) void* mixed_kv_host_##name = nullptr;                 \
    asm(".pushsection .text\n.globl " #name "\n.hidden " #name "\n.type " #name                 \
        ", %function\n.p2align 4\n" #name ":\n" MIXED_KV_JUMP(name) ".size " #name ", .-" #name \
                                                                    "\n"                        \
                                                                    ".popsection\n");

extern "C" {
MIXED_KV_HOST_FUNCTIONS(MIXED_KV_FORWARD)
}

namespace mixed_kv::plugin {
namespace {

struct HostFunction {
    const char* name;
    void** address;
};

#define MIXED_KV_LIST(name) {#name, &mixed_kv_host_##name},
const HostFunction kFunctions[] = {MIXED_KV_HOST_FUNCTIONS(MIXED_KV_LIST)};

// The library that holds an address, kept open. Symbols are then looked for in it and in what it needs:
// libggml, and with it libggml-base. Where ggml is linked into the program, that is the program.
void* library_of(const void* address) {
    Dl_info info;
    if (dladdr(address, &info) == 0 || info.dli_fname == nullptr) return nullptr;
    void* library = dlopen(info.dli_fname, RTLD_LAZY | RTLD_LOCAL | RTLD_NOLOAD);
    return library != nullptr ? library : dlopen(nullptr, RTLD_LAZY | RTLD_LOCAL);
}

std::mutex mutex;
void* bound = nullptr;  // the host's library

}  // namespace

std::string bind_host(const void* caller) {
    const std::lock_guard<std::mutex> lock(mutex);
    void* library = library_of(caller);
    if (library == nullptr) return "the program that loads it is unknown to the dynamic linker";
    if (bound != nullptr) {
        const bool same = bound == library;
        dlclose(library);
        return same ? "" : "another ggml of this process has it loaded already";
    }
    for (const HostFunction& function : kFunctions) {
        if (dlsym(library, function.name) != nullptr) continue;
        dlclose(library);
        return std::string("this host's ggml has no ") + function.name +
               " (a program that has ggml linked in must export it)";
    }
    for (const HostFunction& function : kFunctions) *function.address = dlsym(library, function.name);
    bound = library;
    return "";
}

void unbind_host() {
    const std::lock_guard<std::mutex> lock(mutex);
    if (bound != nullptr) dlclose(bound);
    bound = nullptr;
}

}  // namespace mixed_kv::plugin
