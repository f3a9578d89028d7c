#include "host_cpu.h"

#include <algorithm>

#include "log.h"
#include "pool_hook.h"

namespace mixed_kv::plugin {
namespace {

// A host has one or two pools (generation, batch); more only after replacing them.
constexpr std::size_t kMaxInstances = 4;

}  // namespace

ggml_backend_dev_t HostCpu::device() { return ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU); }

void* HostCpu::function_address(const char* name) {
    ggml_backend_dev_t dev = device();
    return dev == nullptr ? nullptr
                          : ggml_backend_reg_get_proc_address(ggml_backend_dev_backend_reg(dev), name);
}

HostCpu::~HostCpu() {
    if (borrower_ != nullptr) return_pool(borrower_);
    for (const Instance& i : instances_) ggml_backend_free(i.backend);
}

void HostCpu::start_graph(int n_threads) {
    n_threads_ = std::max(1, n_threads);
    const HostPool host = take_host_pool_of_this_thread();
    if (host.pool != nullptr) {
        borrower_ = nullptr;
        pool_ = host.pool;
        return;
    }
    if (host.fresh && n_threads_ > 1) lend_to(host.cpu);
    pool_ = borrower_ == nullptr ? nullptr : lease_.pool();
}

void HostCpu::lend_to(ggml_backend_t cpu) {
    // Detached before it goes back to the stock: detaching pauses a pool, which another context may be using
    // by then.
    if (borrower_ == cpu && lease_.n_threads() < n_threads_) original_set_threadpool()(cpu, nullptr);
    ggml_threadpool_t pool = lease_.acquire(n_threads_);
    borrower_ = pool == nullptr ? nullptr : cpu;
    if (pool != nullptr) lend_pool(cpu, pool);
}

void HostCpu::set_abort_callback(ggml_abort_callback callback, void* data) {
    abort_callback_ = callback;
    abort_data_ = data;
}

bool HostCpu::abort_requested() const { return abort_callback_ != nullptr && abort_callback_(abort_data_); }

ggml_backend_t HostCpu::instance() {
    const auto found = std::find_if(instances_.begin(), instances_.end(),
                                    [&](const Instance& i) { return i.pool == pool_; });
    if (found != instances_.end()) return found->backend;
    if (instances_.size() == kMaxInstances) {
        ggml_backend_free(instances_.front().backend);
        instances_.erase(instances_.begin());
    }
    ggml_backend_t backend = ggml_backend_dev_init(device(), nullptr);
    if (backend == nullptr) return nullptr;
    if (pool_ != nullptr && original_set_threadpool() != nullptr) original_set_threadpool()(backend, pool_);
    instances_.push_back({backend, pool_});
    return backend;
}

ggml_status HostCpu::compute(ggml_cgraph* graph, bool abortable) {
    ggml_backend_t backend = instance();
    if (backend == nullptr) return GGML_STATUS_ALLOC_FAILED;
    static const auto set_n_threads = function<ggml_backend_set_n_threads_t>("ggml_backend_set_n_threads");
    static const auto set_abort =
        function<ggml_backend_set_abort_callback_t>("ggml_backend_set_abort_callback");
    if (set_n_threads != nullptr) set_n_threads(backend, n_threads_);
    if (set_abort != nullptr) set_abort(backend, abortable ? abort_callback_ : nullptr, abort_data_);
    return ggml_backend_graph_compute(backend, graph);
}

}  // namespace mixed_kv::plugin
