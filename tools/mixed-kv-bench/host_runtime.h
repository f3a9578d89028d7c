#pragma once

#include <ggml-backend.h>
#include <ggml-cpu.h>

#include <memory>
#include <string>

#include "common/plugin.h"

namespace mixed_kv::tools {

struct BackendFree {
    void operator()(ggml_backend_t backend) const { ggml_backend_free(backend); }
};
using BackendHandle = std::unique_ptr<ggml_backend, BackendFree>;

// llama.cpp's CPU backend and the plugin's, loaded and driven as a llama.cpp program does: one polling thread
// pool, attached to the CPU backend, and the number of threads announced before each graph.
class HostRuntime {
  public:
    // Loads both. Throws std::runtime_error naming what is missing.
    explicit HostRuntime(int n_threads);
    ~HostRuntime();
    HostRuntime(const HostRuntime&) = delete;
    HostRuntime& operator=(const HostRuntime&) = delete;

    Plugin& plugin() { return *plugin_; }
    ggml_backend_t cpu() const { return cpu_.get(); }
    int n_threads() const { return n_threads_; }
    // File name of the CPU backend that the loader has chosen for this CPU.
    std::string cpu_library() const;

    // A backend of the plugin for caches with these settings ("k=q4,v=q4,window=0,..."), which also hold for
    // buffers allocated until the next call. Throws UsageError with the plugin's words when it refuses them.
    BackendHandle new_plugin_backend(const std::string& settings);

    // Computes a graph, announcing it first. Throws std::runtime_error when it fails.
    void compute(ggml_backend_t backend, ggml_cgraph* graph);

  private:
    int n_threads_;
    std::unique_ptr<Plugin> plugin_;
    BackendHandle cpu_;
    ggml_threadpool_t pool_ = nullptr;
    ggml_backend_set_n_threads_t set_cpu_threads_ = nullptr, set_plugin_threads_ = nullptr;
};

// Loads the CPU backend and the plugin. Throws std::runtime_error naming what is missing.
Plugin load_plugin();

}  // namespace mixed_kv::tools
