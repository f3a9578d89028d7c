#pragma once

#include <ggml-backend.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "common/backends.h"
#include "mixed_kv_api.h"

namespace mixed_kv::tools {

// The loaded plugin, reached through its entry in ggml's registry.
class Plugin {
  public:
    // nullopt when it is not loaded, has declined, or speaks another version of its interface.
    static std::optional<Plugin> find();
    // After load_backends(). Throws std::runtime_error, in one line why it is not there: what is wrong with
    // its file, or what it or the loader said.
    static Plugin require(const BackendPaths& paths);

    ggml_backend_dev_t device() const { return device_; }
    const mixed_kv_api& api() const { return *api_; }

    mixed_kv_counters counters() const;
    // What the plugin has said about its caches since the last call: one line per cache, one per reason why
    // mixed storage is not in effect.
    std::vector<std::string> new_report_lines();
    std::vector<mixed_kv_tensor_info> tensors() const;

    // Memory of all live caches as the kernel counts it: pages and reservations.
    std::uint64_t resident_cache_bytes() const;

  private:
    Plugin(ggml_backend_dev_t device, const mixed_kv_api* api) : device_(device), api_(api) {}

    ggml_backend_dev_t device_;
    const mixed_kv_api* api_;
    std::size_t reported_ = 0;  // length of the report seen so far
};

}  // namespace mixed_kv::tools
