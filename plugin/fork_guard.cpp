#include "fork_guard.h"

#include <pthread.h>

#include <atomic>
#include <mutex>

#include "device.h"
#include "graphs.h"
#include "host_cpu.h"
#include "log.h"
#include "report.h"
#include "thread_pools.h"

namespace mixed_kv::plugin {
namespace {

std::atomic<unsigned> generation{0};

// In the order in which they are taken elsewhere. The locks of caches are not among them: whoever holds one
// is using that cache, which the child then cannot.
template <typename Fn>
void for_each_lock(Fn&& fn) {
    Report::instance().for_each_lock(fn);
    for (std::mutex* mutex : {&host_cpus_mutex(), &stock_mutex(), &graphs_mutex(), &override_mutex()})
        fn(*mutex);
}

void before_fork() {
    HostCpu::take_back_pools_of_this_thread();
    for_each_lock([](std::mutex& mutex) { mutex.lock(); });
}

void after_fork_in_parent() {
    for_each_lock([](std::mutex& mutex) { mutex.unlock(); });
}

void after_fork_in_child() {
    generation.fetch_add(1, std::memory_order_relaxed);
    Report::instance().forget_caches_in_use();
    after_fork_in_parent();
}

}  // namespace

void install_fork_guard() {
    static std::once_flag once;
    std::call_once(once, [] {
        Report::instance();  // made now: nothing may be made during a fork
        if (pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child) != 0)
            MIXED_KV_LOG(WARN, "no memory to prepare for fork(): a child must not use this model");
    });
}

unsigned process_generation() noexcept { return generation.load(std::memory_order_relaxed); }

}  // namespace mixed_kv::plugin
