#include "thread_pools.h"

#include <algorithm>
#include <mutex>
#include <vector>

#include "fork_guard.h"
#include "host_cpu.h"

namespace mixed_kv::plugin {
namespace {

// ggml's unit of polling: 128 Ki spins, one to a few milliseconds. Enough for the gaps between the splits of
// a graph; between graphs the threads sleep, since such hosts (node) have other work for the cores.
constexpr std::uint32_t kPoll = 1;

struct Pool {
    ggml_threadpool_t pool;
    int n_threads;
    unsigned generation;
};

std::vector<Pool>& stock() {
    static auto* pools = new std::vector<Pool>;  // outlives static destruction
    return *pools;
}

// There is always room in the stock for every pool that was made: giving one back cannot fail.
void expect_one_more() {
    static std::size_t n_made = 0;
    const std::lock_guard<std::mutex> lock(stock_mutex());
    stock().reserve(++n_made);
}

ggml_threadpool_t new_pool(int n_threads) {
    using new_t = ggml_threadpool_t (*)(ggml_threadpool_params*);
    const auto make = HostCpu::function<new_t>("ggml_threadpool_new");
    if (make == nullptr) return nullptr;
    expect_one_more();
    ggml_threadpool_params params = ggml_threadpool_params_default(n_threads);
    params.poll = kPoll;
    return make(&params);
}

}  // namespace

ggml_threadpool_t PoolLease::acquire(int n_threads) {
    if (pool_ != nullptr && n_threads_ >= n_threads && !is_stale()) return pool_;
    release();
    generation_ = process_generation();
    {
        std::lock_guard<std::mutex> lock(stock_mutex());
        std::vector<Pool>& pools = stock();
        const auto fits = std::find_if(pools.begin(), pools.end(), [&](const Pool& p) {
            return p.n_threads == n_threads && p.generation == generation_;
        });
        if (fits != pools.end()) {
            pool_ = fits->pool;
            pools.erase(fits);
        }
    }
    if (pool_ == nullptr) pool_ = new_pool(n_threads);
    n_threads_ = n_threads;
    return pool_;
}

void PoolLease::release() {
    if (pool_ == nullptr) return;
    if (!is_stale()) {  // else nobody can use it, nor free it: its threads cannot be joined
        std::lock_guard<std::mutex> lock(stock_mutex());
        stock().push_back({pool_, n_threads_, generation_});
    }
    pool_ = nullptr;
}

bool PoolLease::is_stale() const noexcept { return pool_ != nullptr && generation_ != process_generation(); }

std::mutex& stock_mutex() {
    static std::mutex mutex;
    return mutex;
}

}  // namespace mixed_kv::plugin
