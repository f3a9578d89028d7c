#include "pool_hook.h"

#include <cstring>
#include <mutex>
#include <set>

#include "ggml-backend-impl.h"

namespace mixed_kv::plugin {
namespace {

using get_proc_address_t = void* (*)(ggml_backend_reg_t, const char*);

get_proc_address_t original_get_proc_address = nullptr;
set_threadpool_t set_threadpool = nullptr;
thread_local HostPool pool_of_this_thread;

std::mutex borrowers_mutex;
std::set<ggml_backend_t> borrowers;  // CPU backends of the host that have a pool of ours

void hooked_set_threadpool(ggml_backend_t backend, ggml_threadpool_t pool) {
    pool_of_this_thread = {backend, pool, true};
    {
        std::lock_guard<std::mutex> lock(borrowers_mutex);
        // The host says before each graph that it has no pool. Taking ours away would pause it every time.
        if (pool == nullptr && borrowers.count(backend) != 0) return;
        borrowers.erase(backend);
    }
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
        cpu_registration->iface.get_proc_address = hooked_get_proc_address;
    });
}

HostPool take_host_pool_of_this_thread() {
    const HostPool pool = pool_of_this_thread;
    pool_of_this_thread.fresh = false;
    return pool;
}

void lend_pool(ggml_backend_t cpu, ggml_threadpool_t pool) {
    std::lock_guard<std::mutex> lock(borrowers_mutex);
    borrowers.insert(cpu);
    set_threadpool(cpu, pool);
}

void return_pool(ggml_backend_t cpu) {
    std::lock_guard<std::mutex> lock(borrowers_mutex);
    borrowers.erase(cpu);
}

set_threadpool_t original_set_threadpool() { return set_threadpool; }

}  // namespace mixed_kv::plugin
