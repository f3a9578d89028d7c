#include "ggml_contract/pool_hook.h"

#include <cstring>
#include <mutex>

#include "border.h"
#include "ggml-backend-impl.h"
#include "ggml_contract/table_hook.h"
#include "host_cpu.h"
#include "thread_state.h"

namespace mixed_kv::plugin {
namespace {

using get_proc_address_t = void* (*)(ggml_backend_reg_t, const char*);

get_proc_address_t original_get_proc_address = nullptr;
set_threadpool_t set_threadpool = nullptr;
ThreadState<HostPool> pool_of_this_thread;

void hooked_set_threadpool(ggml_backend_t backend, ggml_threadpool_t pool) {
    if (HostPool* state = pool_of_this_thread.get()) *state = {backend, pool, true};
    // The host says before each graph that it has no pool. Taking ours away would pause it every time.
    if (pool == nullptr && HostCpu::has_lent_to(backend)) return;
    if (pool != nullptr) at_border("giving up a pool", [&] { HostCpu::take_stale_pool_from(backend); });
    set_threadpool(backend, pool);
}

void* hooked_get_proc_address(ggml_backend_reg_t reg, const char* name) {
    if (std::strcmp(name, "ggml_backend_cpu_set_threadpool") == 0)
        return reinterpret_cast<void*>(hooked_set_threadpool);
    return original_get_proc_address(reg, name);
}

}  // namespace

void install_pool_hook(ggml_backend_reg_t cpu_registration) {
    static std::once_flag once;
    std::call_once(once, [&] {
        if (cpu_registration == nullptr || cpu_registration->iface.get_proc_address == nullptr) return;
        original_get_proc_address = cpu_registration->iface.get_proc_address;
        set_threadpool = reinterpret_cast<set_threadpool_t>(
            original_get_proc_address(cpu_registration, "ggml_backend_cpu_set_threadpool"));
        if (set_threadpool == nullptr) return;  // a CPU backend without pools: nothing to share
        replace_entry(cpu_registration->iface.get_proc_address, hooked_get_proc_address);
    });
}

HostPool take_host_pool_of_this_thread() {
    HostPool* state = pool_of_this_thread.get();
    if (state == nullptr) return {};
    const HostPool pool = *state;
    state->fresh = false;
    return pool;
}

set_threadpool_t original_set_threadpool() { return set_threadpool; }

}  // namespace mixed_kv::plugin
