#include "ggml_contract/lone_cpu_hook.h"

#include <mutex>

#include "border.h"
#include "ggml_contract/nodes.h"
#include "ggml_contract/op_support.h"
#include "ggml_contract/table_hook.h"
#include "host_share.h"
#include "kv_buffer.h"
#include "thread_state.h"

namespace mixed_kv::plugin {
namespace {

using init_backend_t = ggml_backend_t (*)(ggml_backend_dev_t, const char*);
using graph_compute_t = ggml_status (*)(ggml_backend_t, ggml_cgraph*);

constexpr char kReason[] =
    "a context without the device MixedKV uses this cache (a draft model without offloaded layers: -ngld)";

ggml_backend_dev_t host_cpu = nullptr;
init_backend_t original_init_backend = nullptr;
graph_compute_t original_graph_compute = nullptr;  // the same for all CPU backends

struct Pending {
    bool ours = false;
};
ThreadState<Pending> pending;

ggml_status pin_and_compute(ggml_backend_t backend, ggml_cgraph* graph) {
    const ggml_status status = at_border("pinning a shared cache", GGML_STATUS_ALLOC_FAILED, [&] {
        const int n = ggml_graph_n_nodes(graph);
        for (int i = 0; i < n; ++i) {
            const ggml_tensor* op = ggml_graph_node(graph, i);
            if (is_view_node(op)) continue;
            for_each_cache(op, [](KvEntry& entry, KvBuffer& buffer) {
                const std::lock_guard<std::recursive_mutex> lock(buffer.mutex);
                buffer.pin(entry, kReason);
            });
        }
        return GGML_STATUS_SUCCESS;
    });
    return status == GGML_STATUS_SUCCESS ? original_graph_compute(backend, graph) : status;
}

bool supports_op(ggml_backend_dev_t, const ggml_tensor* op) {
    return cpu_supports(op) || host_cpu->iface.supports_op(host_cpu, op);
}

bool supports_buft(ggml_backend_dev_t, ggml_backend_buffer_type_t type) {
    return type == buffer_type() || host_cpu->iface.supports_buft(host_cpu, type);
}

// The CPU device as a context without ours sees it.
ggml_backend_dev_t lone_cpu() {
    static ggml_backend_device device = [] {
        ggml_backend_device copy = *host_cpu;
        copy.iface.supports_op = supports_op;
        copy.iface.supports_buft = supports_buft;
        return copy;
    }();
    return &device;
}

ggml_backend_t hooked_init_backend(ggml_backend_dev_t cpu, const char* parameters) {
    ggml_backend_t backend = original_init_backend(cpu, parameters);
    Pending* state = pending.get();
    const bool beside_ours = state == nullptr || state->ours;
    if (state != nullptr) state->ours = false;
    note_context(beside_ours);
    if (backend == nullptr || beside_ours || cpu != host_cpu) return backend;
    __atomic_store_n(&original_graph_compute, backend->iface.graph_compute, __ATOMIC_RELEASE);
    backend->iface.graph_compute = pin_and_compute;
    backend->device = lone_cpu();
    return backend;
}

}  // namespace

void install_lone_cpu_hook(ggml_backend_dev_t cpu) {
    static std::once_flag once;
    std::call_once(once, [&] {
        host_cpu = cpu;
        original_init_backend = cpu->iface.init_backend;
        replace_entry(cpu->iface.init_backend, hooked_init_backend);
    });
}

void note_backend_of_ours() noexcept {
    if (Pending* state = pending.get()) state->ours = true;
}

ggml_backend_t new_cpu_backend(ggml_backend_dev_t cpu) {
    return original_init_backend == nullptr ? ggml_backend_dev_init(cpu, nullptr)
                                            : original_init_backend(cpu, nullptr);
}

}  // namespace mixed_kv::plugin
