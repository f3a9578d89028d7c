#include "host_cpu.h"

#include <algorithm>
#include <utility>

#include "ggml-backend-impl.h"
#include "ggml_contract/lone_cpu_hook.h"
#include "ggml_contract/pool_hook.h"

namespace mixed_kv::plugin {
namespace {

// A host has one or two pools (generation, batch); more only after replacing them.
constexpr std::size_t kMaxInstances = 4;

HostCpu* first_instance = nullptr;

}  // namespace

ggml_backend_dev_t HostCpu::device() { return ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU); }

void* HostCpu::function_address(const char* name) {
    ggml_backend_dev_t dev = device();
    return dev == nullptr ? nullptr
                          : ggml_backend_reg_get_proc_address(ggml_backend_dev_backend_reg(dev), name);
}

std::mutex& host_cpus_mutex() {
    static std::mutex mutex;
    return mutex;
}

HostCpu::HostCpu() {
    std::lock_guard<std::mutex> lock(host_cpus_mutex());
    next_ = first_instance;
    first_instance = this;
}

HostCpu::~HostCpu() {
    {
        std::lock_guard<std::mutex> lock(host_cpus_mutex());
        HostCpu** at = &first_instance;
        while (*at != this) at = &(*at)->next_;
        *at = next_;
    }
    for (const Instance& i : instances_) ggml_backend_free(i.backend);
}

bool HostCpu::has_lent_to(ggml_backend_t cpu) {
    std::lock_guard<std::mutex> lock(host_cpus_mutex());
    for (const HostCpu* i = first_instance; i != nullptr; i = i->next_) {
        if (i->borrower_ == cpu) return true;
    }
    return false;
}

void HostCpu::set_borrower(ggml_backend_t cpu) {
    std::lock_guard<std::mutex> lock(host_cpus_mutex());
    borrower_ = cpu;
}

void HostCpu::start_graph(int n_threads) {
    n_threads_ = std::max(1, n_threads);
    {
        std::lock_guard<std::mutex> lock(host_cpus_mutex());
        user_ = std::this_thread::get_id();
        if (lease_.is_stale()) take_pool_back();  // lent to a context of another thread before a fork
    }
    const HostPool host = take_host_pool_of_this_thread();
    if (host.pool != nullptr) {
        set_borrower(nullptr);
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
    set_borrower(nullptr);
    pool_ = nullptr;
    ggml_threadpool_t pool = lease_.acquire(n_threads_);
    if (pool == nullptr) return;
    original_set_threadpool()(cpu, pool);
    set_borrower(cpu);
}

// Under the lock of the list.
void HostCpu::take_pool_back() {
    drop_lent_instances();
    if (borrower_ != nullptr) {
        detach_borrower();
        borrower_ = nullptr;
        pool_ = nullptr;
    }
    lease_.release();
}

// Taking a pool from a backend pauses it, under the pool's lock. In a child process one of its threads, which
// is not there any more, may have held that for good: the backend gets the insides of a new one instead, and
// those that know the pool are freed, which does not touch it.
void HostCpu::detach_borrower() {
    ggml_backend_t fresh = lease_.is_stale() ? new_cpu_backend(device()) : nullptr;
    if (fresh == nullptr) {
        original_set_threadpool()(borrower_, nullptr);
        return;
    }
    prepare(fresh, true);  // as llama.cpp has told ours and the borrower alike
    std::swap(borrower_->context, fresh->context);
    ggml_backend_free(fresh);
}

void HostCpu::take_stale_pool_from(ggml_backend_t cpu) {
    std::lock_guard<std::mutex> lock(host_cpus_mutex());
    for (HostCpu* i = first_instance; i != nullptr; i = i->next_) {
        if (i->borrower_ == cpu && i->lease_.is_stale()) i->take_pool_back();
    }
}

void HostCpu::drop_lent_instances() {
    if (lease_.pool() == nullptr) return;
    const auto lent = std::remove_if(instances_.begin(), instances_.end(), [&](const Instance& i) {
        if (i.pool != lease_.pool()) return false;
        ggml_backend_free(i.backend);
        return true;
    });
    instances_.erase(lent, instances_.end());
}

void HostCpu::take_back_pools_of_this_thread() {
    std::lock_guard<std::mutex> lock(host_cpus_mutex());
    for (HostCpu* i = first_instance; i != nullptr; i = i->next_) {
        if (i->user_ != std::this_thread::get_id()) continue;
        i->take_pool_back();
    }
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
    instances_.reserve(instances_.size() + 1);
    ggml_backend_t backend = new_cpu_backend(device());
    if (backend == nullptr) return nullptr;
    if (pool_ != nullptr && original_set_threadpool() != nullptr) original_set_threadpool()(backend, pool_);
    instances_.push_back({backend, pool_});
    return backend;
}

// The host's threads and, if abortable, its abort callback.
void HostCpu::prepare(ggml_backend_t backend, bool abortable) const {
    static const auto set_n_threads = function<ggml_backend_set_n_threads_t>("ggml_backend_set_n_threads");
    static const auto set_abort =
        function<ggml_backend_set_abort_callback_t>("ggml_backend_set_abort_callback");
    if (set_n_threads != nullptr) set_n_threads(backend, n_threads_);
    if (set_abort != nullptr) set_abort(backend, abortable ? abort_callback_ : nullptr, abort_data_);
}

ggml_status HostCpu::compute(ggml_cgraph* graph, bool abortable) {
    ggml_backend_t backend = instance();
    if (backend == nullptr) return GGML_STATUS_ALLOC_FAILED;
    prepare(backend, abortable);
    try {
        return ggml_backend_graph_compute(backend, graph);
    } catch (...) {
        // ggml keeps a pointer to the work space that it has given up for a larger one: this instance is not
        // to be used again, nor freed.
        instances_.erase(std::find_if(instances_.begin(), instances_.end(),
                                      [&](const Instance& i) { return i.backend == backend; }));
        throw;
    }
}

}  // namespace mixed_kv::plugin
