#include <fmt/format.h>

#include <map>

#include "common/llama_handles.h"
#include "common/llama_log.h"
#include "mixed-kv-doctor/examine.h"
#include "mixed_kv/cold_format.h"
#include "mixed_kv/setting_table.h"

namespace mixed_kv::tools {

namespace {

std::string mebibytes(double bytes) { return fmt::format("{:.1f} MiB", bytes / (1024.0 * 1024.0)); }

// Of a tensor whose pages are all cold.
std::uint64_t cold_bytes(const mixed_kv_tensor_info& tensor) {
    const std::int64_t pages = (tensor.n_cells + kPageTokens - 1) / kPageTokens;
    return static_cast<std::uint64_t>(pages * tensor.n_stream * tensor.n_head) * tensor.block_bytes;
}

nlohmann::ordered_json tensor_facts(const mixed_kv_tensor_info& tensor) {
    return {
        {"name", tensor.name},     {"mixed", tensor.mixed != 0},  {"reason", tensor.reason},
        {"format", tensor.format}, {"cells", tensor.n_cells},     {"streams", tensor.n_stream},
        {"heads", tensor.n_head},  {"head_dim", tensor.head_dim}, {"cold_bytes_full", cold_bytes(tensor)}};
}

// Tensors that fare alike get the same text: "K q4, 8 heads of 128, 4096 cells: mixed".
std::string fate(const mixed_kv_tensor_info& tensor) {
    const char* role = tensor.is_value != 0 ? "V" : "K";
    const std::string heads =
        tensor.n_head > 0 ? fmt::format(", {} heads of {}", tensor.n_head, tensor.head_dim) : std::string();
    return tensor.mixed != 0
               ? fmt::format("{} {}{}, {} cells: mixed", role, tensor.format, heads, tensor.n_cells)
               : fmt::format("{}{}: not mixed, {}", role, heads, tensor.reason);
}

}  // namespace

Problem problem_with_model(const std::string& what) {
    // A setting that was refused is named in the line.
    const Setting* named = nullptr;
    for (const Setting& setting : setting_table()) {
        if (what.find(std::string(setting.variable) + "=") != std::string::npos) named = &setting;
    }
    if (named == nullptr) return {what, "correct -m or -c; -v shows llama.cpp's log"};
    return {what, fmt::format(
                      "{} {} ({}), or ask for a shorter context (-c)",
                      named->name == std::string_view("limit_mb") || named->name == std::string_view("budget")
                          ? "raise"
                          : "change",
                      named->variable, named->accepted())};
}

void examine_model(const ModelQuestion& question, Plugin& plugin, Diagnosis& diagnosis) {
    (void)plugin.new_report_lines();
    const ModelHandle model = load_model({.path = question.path, .plugin_device = plugin.device()});
    Context context(model.get(), {.n_ctx = question.n_ctx,
                                  .n_batch = 512,
                                  .n_ubatch = 512,
                                  .type_k = question.type_k,
                                  .type_v = question.type_v,
                                  .polling_pool = false});
    const std::vector<std::string> report = plugin.new_report_lines();
    const std::vector<mixed_kv_tensor_info> tensors = plugin.tensors();
    const mixed_kv_counters counters = plugin.counters();

    Finding finding = {.key = "model", .heading = "model"};
    finding.lines.push_back(fmt::format("{}, {} layers, context {}", question.path,
                                        llama_model_n_layer(model.get()), llama_n_ctx(context.get())));
    for (const std::string& line : report) {
        finding.lines.push_back(line);
    }
    std::map<std::string, int> groups;
    nlohmann::ordered_json facts = nlohmann::ordered_json::array();
    std::uint64_t all_cold = 0;
    for (const mixed_kv_tensor_info& tensor : tensors) {
        groups[fate(tensor)]++;
        facts.push_back(tensor_facts(tensor));
        all_cold += cold_bytes(tensor);
    }
    for (const auto& [name, count] : groups) {
        finding.lines.push_back(fmt::format("{} x {}", count, name));
    }
    const std::string f16_size = mebibytes(static_cast<double>(counters.f16_bytes_declared));
    finding.lines.push_back(
        counters.budget_bytes > 0
            ? fmt::format("F16 cache of this length: {}; the budget leaves {} for rows", f16_size,
                          mebibytes(static_cast<double>(counters.budget_bytes)))
            : fmt::format("F16 cache of this length: {}; mixed tensors with every row cold: {}", f16_size,
                          mebibytes(static_cast<double>(all_cold))));
    finding.facts = {{"path", question.path},
                     {"n_layer", llama_model_n_layer(model.get())},
                     {"n_ctx", llama_n_ctx(context.get())},
                     {"active", counters.n_tensors_mixed > 0},
                     {"tensors_mixed", counters.n_tensors_mixed},
                     {"tensors_pinned", counters.n_tensors_pinned},
                     {"tensors_plain", counters.n_tensors_plain},
                     {"f16_bytes", counters.f16_bytes_declared},
                     {"cold_bytes_full", all_cold},
                     {"budget_bytes", counters.budget_bytes},
                     {"report", report},
                     {"tensors", facts}};
    if (counters.n_tensors_mixed == 0) {
        diagnosis.problems.push_back(
            {"this model's cache would not be mixed" +
                 (report.empty() ? std::string() : ": " + report.front()),
             "see the reasons above; flash attention must be on and the cache type f16"});
    }
    diagnosis.findings.push_back(std::move(finding));
}

}  // namespace mixed_kv::tools
