#include "restore_threads.h"

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <thread>
#include <vector>

namespace mixed_kv::plugin {
namespace {

// More do not pay for starting them: a restore is bound by memory long before.
constexpr std::size_t kMostThreads = 32;

std::size_t usable_processors() {
    cpu_set_t set;
    CPU_ZERO(&set);
    if (sched_getaffinity(0, sizeof set, &set) == 0) return std::size_t(std::max(1, CPU_COUNT(&set)));
    return std::max(1u, std::thread::hardware_concurrency());
}

}  // namespace

void run_on_all_processors(std::size_t n, const std::function<void(std::size_t)>& job) {
    std::atomic<std::size_t> next{0};
    const auto work = [&] {
        for (std::size_t i = next.fetch_add(1); i < n; i = next.fetch_add(1)) job(i);
    };
    const std::size_t n_threads = std::min({usable_processors(), kMostThreads, n});
    std::vector<std::thread> threads;
    threads.reserve(n_threads);
    try {
        while (threads.size() + 1 < n_threads) threads.emplace_back(work);
    } catch (...) {  // no further thread
    }
    work();
    for (std::thread& thread : threads) thread.join();
}

}  // namespace mixed_kv::plugin
