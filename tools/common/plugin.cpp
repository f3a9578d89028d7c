#include "common/plugin.h"

#include <sstream>
#include <stdexcept>

#include "common/llama_log.h"
#include "common/resident_memory.h"

namespace mixed_kv::tools {

std::optional<Plugin> Plugin::find() {
    ggml_backend_reg_t reg = ggml_backend_reg_by_name(MIXED_KV_REG_NAME);
    if (reg == nullptr || ggml_backend_reg_dev_count(reg) == 0) {
        return std::nullopt;
    }
    const auto get_api =
        reinterpret_cast<mixed_kv_get_api_t>(ggml_backend_reg_get_proc_address(reg, "mixed_kv_get_api"));
    const mixed_kv_api* api = get_api != nullptr ? get_api(MIXED_KV_API_VERSION) : nullptr;
    if (api == nullptr) {
        return std::nullopt;
    }
    return Plugin(ggml_backend_reg_dev_get(reg, 0), api);
}

Plugin Plugin::require(const BackendPaths& paths) {
    if (const std::optional<Plugin> plugin = find()) {
        return *plugin;
    }
    if (paths.plugin.empty()) {
        throw std::runtime_error(
            "no libggml-mixed-kv.so beside this program, and GGML_BACKEND_PATH is not set");
    }
    if (!paths.plugin_fault.empty()) {
        throw std::runtime_error("the plugin was not loaded: " + paths.plugin + " " + paths.plugin_fault +
                                 (paths.plugin_from_environment ? " (GGML_BACKEND_PATH)" : ""));
    }
    std::vector<std::string> said = take_plugin_lines();
    for (std::string& line : take_logged_errors()) {
        said.push_back(std::move(line));
    }
    throw std::runtime_error("the plugin " + paths.plugin + " was not loaded" +
                             (said.empty() ? "" : ": " + said.front()) + " (mixed-kv-doctor says more)");
}

mixed_kv_counters Plugin::counters() const {
    mixed_kv_counters counters = {};
    api_->counters(&counters);
    return counters;
}

std::vector<std::string> Plugin::new_report_lines() {
    std::string text(api_->report(nullptr, 0) + 1, '\0');
    text.resize(std::min(api_->report(text.data(), text.size()), text.size() - 1));
    std::istringstream news(text.substr(std::min(reported_, text.size())));
    reported_ = text.size();
    std::vector<std::string> lines;
    for (std::string line; std::getline(news, line);) {
        if (!line.empty()) {
            lines.push_back(line);
        }
    }
    return lines;
}

std::vector<mixed_kv_tensor_info> Plugin::tensors() const {
    std::vector<mixed_kv_tensor_info> tensors(api_->tensors(nullptr, 0));
    const std::size_t n = api_->tensors(tensors.data(), tensors.size());
    tensors.resize(std::min(n, tensors.size()));
    return tensors;
}

std::uint64_t Plugin::resident_cache_bytes() const {
    std::vector<mixed_kv_range> ranges(api_->ranges(nullptr, 0));
    const std::size_t n = api_->ranges(ranges.data(), ranges.size());
    ranges.resize(std::min(n, ranges.size()));
    std::vector<AddressRange> addresses;
    for (const mixed_kv_range& range : ranges) {
        addresses.push_back(
            {reinterpret_cast<std::uintptr_t>(range.begin), reinterpret_cast<std::uintptr_t>(range.end)});
    }
    return resident_bytes(std::move(addresses));
}

}  // namespace mixed_kv::tools
