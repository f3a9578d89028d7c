#include "memory_estimate.h"

#include <algorithm>
#include <cmath>

#include "cache/overlay.h"
#include "report.h"

namespace mixed_kv::plugin {
namespace {

// A context that a limited memory is planned for: long enough that window and sinks are a small part of it.
constexpr double kPlannedRows = 16384;

// Heads are known once the host has shown its graphs. Before that: a size of head whose blocks have no
// padding.
HeadShape likely_heads(int row_elements) {
    for (const int head_dim : {128, 64, 32, 16}) {
        if (row_elements % head_dim == 0) return {row_elements / head_dim, head_dim};
    }
    return {1, row_elements};
}

// Hot pages of n rows. (The first layer stores its row before the graph's mask has been seen, one token
// earlier.)
std::int64_t hot_pages(std::int64_t n_rows, int window) {
    const std::int64_t n_pages = (n_rows + kPageTokens - 1) / kPageTokens;
    const std::int64_t frozen = std::max<std::int64_t>(0, n_rows - window) / kPageTokens;
    return n_pages - std::min(n_pages, frozen);
}

}  // namespace

TensorMemory expected_memory(const StoredTensor& tensor, const Settings& settings, std::int64_t n_rows) {
    TensorMemory memory;
    if (!tensor.mixed) {
        memory.hot = double(tensor.row_bytes) * double(tensor.n_cells) * tensor.n_stream;
        return memory;
    }
    const double hot_page = double(tensor.row_bytes) * kPageTokens;
    const std::int64_t n_pages = (n_rows + kPageTokens - 1) / kPageTokens;
    std::int64_t hot = n_pages;
    if (tensor.format != nullptr) {
        const HeadShape shape =
            tensor.heads.n_head > 0 ? tensor.heads : likely_heads(int(tensor.row_bytes / sizeof(fp16_t)));
        const double cold_page =
            double(tensor.format->block_bytes(tensor.role, shape.head_dim)) * shape.n_head;
        hot = hot_pages(n_rows, settings.window);
        std::int64_t cold = n_pages - hot;
        for (std::int64_t sinks = settings.sinks; sinks > 0 && cold > 0; sinks -= kPageTokens, --cold) {
            const int in_page = int(std::min<std::int64_t>(sinks, kPageTokens));
            const double page_bytes = cold_page + cache::overlay_capacity(in_page) * double(tensor.row_bytes);
            memory.cold += std::min(page_bytes, hot_page);  // what would not get smaller stays hot
        }
        memory.cold += double(cold) * cold_page;
    }
    memory.hot = double(hot) * hot_page;
    memory.hot *= tensor.n_stream;
    memory.cold *= tensor.n_stream;
    return memory;
}

StoredTensor stored_tensor(const KvEntry& entry) {
    StoredTensor tensor;
    tensor.role = entry.role;
    tensor.row_bytes = entry.row_bytes;
    tensor.n_cells = entry.n_cells;
    tensor.n_stream = entry.n_stream;
    tensor.heads = entry.offered;
    tensor.mixed = entry.mixed() && entry.expected_pin.empty();
    if (!tensor.mixed) return tensor;
    const KvTensor::Config& config = entry.tensor->config();
    tensor.format = config.ladder.empty() ? config.format : config.ladder.back();
    return tensor;
}

TensorMemory expected_memory(const KvEntry& entry, const Settings& settings, std::int64_t n_rows) {
    const StoredTensor tensor = stored_tensor(entry);
    TensorMemory memory = expected_memory(tensor, settings, n_rows);
    if (tensor.mixed) memory.records = double(entry.tensor->memory().bookkeeping);
    return memory;
}

double expected_memory(const KvBuffer& buffer) {
    double bytes = double(buffer.tracker_bytes());
    for (const auto& entry : buffer.entries())
        bytes += expected_memory(*entry, buffer.settings(), entry->n_cells).total();
    return bytes;
}

double f16_equivalent(const Settings& settings) {
    const auto bits = [&](const ColdFormat* format, KvRole role) {
        if (format == nullptr) return 16.0;
        const double hot = std::min(kPlannedRows, double(settings.window) + kPageTokens + settings.sinks);
        return (16.0 * hot + format->bits_per_value(role, 128) * (kPlannedRows - hot)) / kPlannedRows;
    };
    double k = bits(settings.key_format, KvRole::key), v = bits(settings.value_format, KvRole::value);
    // Which layers a model has is not known here: nobody is promised more than the widest rule leaves.
    for (const LayerRule& rule : settings.layers) {
        if (rule.key) k = std::max(k, bits(*rule.key, KvRole::key));
        if (rule.value) v = std::max(v, bits(*rule.value, KvRole::value));
    }
    if (settings.allocation != nullptr && settings.layers.empty()) {
        const double hot = std::min(kPlannedRows, double(settings.window) + kPageTokens + settings.sinks);
        k = v = (16.0 * hot + settings.allocation->bits() * (kPlannedRows - hot)) / kPlannedRows;
    }
    return 32.0 / (k + v);
}

std::size_t memory_for_caches(std::size_t available, const Settings& settings) {
    const double limit =
        settings.budget ? settings.budget.bytes(INFINITY) : settings.limit_mb * 1024.0 * 1024.0;
    if (limit == 0 || limit == INFINITY) return available;
    const double left = limit - Report::instance().expected_bytes();
    return std::min(available, std::size_t(std::max(0.0, left)));
}

}  // namespace mixed_kv::plugin
