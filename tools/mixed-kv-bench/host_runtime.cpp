#include "mixed-kv-bench/host_runtime.h"

#include <filesystem>
#include <stdexcept>

#include "common/backends.h"
#include "common/command_line.h"
#include "common/llama_log.h"

namespace mixed_kv::tools {

Plugin load_plugin() {
    capture_log(LogDisplay::nothing);
    const BackendPaths paths = find_backend_paths();
    load_backends(paths, PluginUse::load);
    return Plugin::require(paths);
}

HostRuntime::HostRuntime(int n_threads) : n_threads_(n_threads) {
    plugin_ = std::make_unique<Plugin>(load_plugin());
    ggml_backend_dev_t cpu = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
    // The plugin learns of the pool by standing between the host and this function, so it must be there
    // first.
    new_plugin_backend("");
    cpu_.reset(ggml_backend_dev_init(cpu, nullptr));
    if (cpu_ == nullptr) throw std::runtime_error("llama.cpp's CPU backend does not start");
    const auto create =
        reinterpret_cast<decltype(&ggml_threadpool_new)>(cpu_backend_function("ggml_threadpool_new"));
    const auto attach = reinterpret_cast<decltype(&ggml_backend_cpu_set_threadpool)>(
        cpu_backend_function("ggml_backend_cpu_set_threadpool"));
    set_cpu_threads_ =
        reinterpret_cast<ggml_backend_set_n_threads_t>(cpu_backend_function("ggml_backend_set_n_threads"));
    set_plugin_threads_ = reinterpret_cast<ggml_backend_set_n_threads_t>(ggml_backend_reg_get_proc_address(
        ggml_backend_dev_backend_reg(plugin_->device()), "ggml_backend_set_n_threads"));
    if (set_plugin_threads_ == nullptr)
        throw std::runtime_error("the plugin has no ggml_backend_set_n_threads");
    ggml_threadpool_params params = ggml_threadpool_params_default(n_threads);
    pool_ = create(&params);
    if (pool_ == nullptr) throw std::runtime_error("ggml cannot create a thread pool");
    attach(cpu_.get(), pool_);
}

HostRuntime::~HostRuntime() {
    cpu_.reset();
    const auto free_pool =
        reinterpret_cast<decltype(&ggml_threadpool_free)>(cpu_backend_function("ggml_threadpool_free"));
    if (pool_ != nullptr) free_pool(pool_);
}

std::string HostRuntime::cpu_library() const {
    const std::vector<std::string> files = mapped_files("libggml-cpu");
    return files.empty() ? "" : std::filesystem::path(files.front()).filename().string();
}

BackendHandle HostRuntime::new_plugin_backend(const std::string& settings) {
    char error[256] = "";
    if (plugin_->api().configure(settings.c_str(), error, sizeof error) == 0) throw UsageError(error);
    BackendHandle backend(ggml_backend_dev_init(plugin_->device(), nullptr));
    if (backend == nullptr) {
        const std::vector<std::string> said = take_plugin_lines();
        throw std::runtime_error("the plugin's backend does not start" +
                                 (said.empty() ? "" : ": " + said.back()));
    }
    return backend;
}

void HostRuntime::compute(ggml_backend_t backend, ggml_cgraph* graph) {
    (backend == cpu_.get() ? set_cpu_threads_ : set_plugin_threads_)(backend, n_threads_);
    if (ggml_backend_graph_compute(backend, graph) != GGML_STATUS_SUCCESS) {
        const std::vector<std::string> said = take_plugin_lines();
        throw std::runtime_error("computing the attention failed" + (said.empty() ? "" : ": " + said.back()));
    }
}

}  // namespace mixed_kv::tools
