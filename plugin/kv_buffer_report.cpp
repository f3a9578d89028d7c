// What a cache says about itself: to people in lines, to tools in structs.
#include <algorithm>
#include <cstdio>
#include <cstring>

#include "api.h"
#include "budget.h"
#include "kv_buffer.h"
#include "log.h"
#include "memory_estimate.h"
#include "report.h"

namespace mixed_kv::plugin {
namespace {

double mib(double bytes) { return bytes / (1024.0 * 1024.0); }

// "q4", or with other formats in some layers "q8 x 2 + q4 x 30".
std::string formats_of(const std::vector<std::unique_ptr<KvEntry>>& entries, KvRole role) {
    std::vector<std::pair<std::string_view, int>> counts;
    for (const auto& entry : entries) {
        if (entry->role != role || entry->tensor == nullptr) continue;
        const std::string_view name = format_name(entry->tensor->config().format);
        const auto found =
            std::find_if(counts.begin(), counts.end(), [&](const auto& c) { return c.first == name; });
        if (found == counts.end()) {
            counts.emplace_back(name, 1);
        } else {
            ++found->second;
        }
    }
    std::string text;
    for (const auto& [name, count] : counts) {
        if (!text.empty()) text += " + ";
        text += name;
        if (counts.size() > 1) text += " x " + std::to_string(count);
    }
    return text;
}

void copy_text(char* out, std::size_t size, std::string_view text) {
    const std::size_t n = std::min(text.size(), size - 1);
    std::memcpy(out, text.data(), n);
    out[n] = '\0';
}

}  // namespace

mixed_kv_tensor_info describe_entry(const KvEntry& entry) {
    mixed_kv_tensor_info info{};
    copy_text(info.name, sizeof info.name, entry.name);
    copy_text(info.reason, sizeof info.reason, entry.reason);
    info.is_value = entry.role == KvRole::value;
    info.mixed = entry.mixed();
    info.n_cells = entry.n_cells;
    info.n_stream = entry.n_stream;
    const bool known = entry.tensor != nullptr && entry.tensor->head_shape_known();
    const HeadShape shape = known ? entry.tensor->layout().shape : entry.offered;
    info.n_head = shape.n_head;
    info.head_dim = shape.head_dim;
    const ColdFormat* format = entry.mixed() ? entry.tensor->config().format : nullptr;
    copy_text(info.format, sizeof info.format, format_name(format));
    if (entry.mixed()) {
        std::string ladder;
        for (const ColdFormat* rung : entry.tensor->config().ladder)
            ladder.append(ladder.empty() ? "" : " ").append(rung->name);
        copy_text(info.ladder, sizeof info.ladder, ladder);
    }
    if (format != nullptr && shape.head_dim > 0)
        info.block_bytes = format->block_bytes(entry.role, shape.head_dim);
    if (entry.tensor != nullptr) {
        const KvTensor::Memory m = entry.tensor->memory();
        info.hot_bytes = m.hot;
        info.cold_bytes = m.cold;
        info.overlay_bytes = m.overlay;
        info.pinned_bytes = m.pinned;
        info.rows_written = std::uint64_t(m.rows_written);
    }
    return info;
}

std::string KvBuffer::describe() const {
    int mixed = 0, exact = 0, plain = 0;
    double f16_bytes = 0;
    const double bytes = expected_memory(*this);
    std::int64_t n_cells = 0;
    int n_stream = 0;
    for (const auto& entry : entries_) {
        n_cells = std::max(n_cells, entry->n_cells);
        n_stream = std::max(n_stream, entry->n_stream);
        f16_bytes += double(entry->size_bytes());
        const bool ours = entry->mixed() && entry->expected_pin.empty();
        ++(!ours ? plain : entry->tensor->config().format == nullptr ? exact : mixed);
    }
    std::string rest;
    if (exact > 0) rest += ", " + std::to_string(exact) + " in exact f16";
    if (plain > 0) rest += ", " + std::to_string(plain) + " in plain memory";
    if (n_host_tensors_ > 0)
        rest += ", " + std::to_string(n_host_tensors_) +
                " in llama.cpp's own memory (layers not offloaded: -ngl)";
    char line[512];
    if (settings_.budget) {
        std::snprintf(
            line, sizeof line,
            "cache of %lld cells x %d stream%s: %d of %d K/V tensors mixed%s, window %d and %d sinks "
            "per sequence in FP16, budget %s, ladder %s, %.1f MiB for rows (F16: %.1f MiB): %s",
            static_cast<long long>(n_cells), n_stream, n_stream == 1 ? "" : "s", mixed,
            int(entries_.size()) + n_host_tensors_, rest.c_str(), settings_.window, settings_.sinks,
            budget_text(settings_.budget).c_str(), ladder_text(settings_.ladder).c_str(),
            mib(allowed_bytes(*this)), mib(f16_bytes), fill_text(*this).c_str());
        return line;
    }
    std::snprintf(line, sizeof line,
                  "cache of %lld cells x %d stream%s: %d of %d K/V tensors mixed%s, window %d and %d sinks "
                  "per sequence "
                  "in FP16, K %s, V %s, %.2f bits per value at full length, %.1f MiB (F16: %.1f MiB)",
                  static_cast<long long>(n_cells), n_stream, n_stream == 1 ? "" : "s", mixed,
                  int(entries_.size()) + n_host_tensors_, rest.c_str(), settings_.window, settings_.sinks,
                  formats_of(entries_, KvRole::key).c_str(), formats_of(entries_, KvRole::value).c_str(),
                  f16_bytes > 0 ? 16.0 * bytes / f16_bytes : 0.0, mib(bytes), mib(f16_bytes));
    return line;
}

bool KvBuffer::announce(bool force, std::vector<Line>& lines) {
    if (announced_ || entries_.empty()) return true;
    const auto known = [](const auto& e) {
        return !e->mixed() || e->offered.n_head > 0 || !e->expected_pin.empty();
    };
    if (!force && !std::all_of(entries_.begin(), entries_.end(), known)) return false;
    // One line for the first tensor of each reason; the tools list them all.
    std::vector<std::string> said;
    for (const auto& entry : entries_) {
        const std::string& reason = entry->reason.empty() ? entry->expected_pin : entry->reason;
        if (reason.empty() || std::find(said.begin(), said.end(), reason) != said.end()) continue;
        said.push_back(reason);
        lines.push_back({true, "not in effect for " + entry->name + " and its like: " + reason});
    }
    const auto stays_mixed = [](const auto& e) { return e->mixed() && e->expected_pin.empty(); };
    if (std::any_of(entries_.begin(), entries_.end(), stays_mixed)) lines.push_back({false, describe()});
    for (const LayerRule& rule : settings_.layers) {
        // No refusal: the draft model of a pair has fewer layers and reads the same setting.
        const int beyond = std::max(rule.first, rule.last);
        const int before = std::min(rule.first, rule.last);
        if (beyond < n_layers_ && before >= -n_layers_) continue;
        lines.push_back({true, "GGML_MIXED_KV_LAYERS names layer " +
                                   std::to_string(beyond < n_layers_ ? before : beyond) +
                                   ", and this cache has " + std::to_string(n_layers_)});
    }
    if (settings_.verbose >= 2) {
        for (const auto& entry : entries_) {
            const mixed_kv_tensor_info info = describe_entry(*entry);
            char line[256];
            std::snprintf(line, sizeof line, "%s: %lld cells x %d, %d heads of %d, %s", info.name,
                          static_cast<long long>(info.n_cells), info.n_stream, info.n_head, info.head_dim,
                          info.mixed != 0 ? info.format : "plain");
            lines.push_back({false, line});
        }
    }
    pin_reasons_.insert(pin_reasons_.end(), said.begin(), said.end());
    announced_ = true;
    return true;
}

KvBuffer::Totals KvBuffer::totals() const {
    Totals sum;
    for (const auto& entry : entries_) {
        if (entry->tensor == nullptr) continue;
        const KvTensor::Memory m = entry->tensor->memory();
        sum.memory.hot += m.hot;
        sum.memory.cold += m.cold;
        sum.memory.overlay += m.overlay;
        sum.memory.pinned += m.pinned;
        sum.memory.bookkeeping += m.bookkeeping;
        sum.memory.rows_written += m.rows_written;
        sum.events.freezes += entry->tensor->counters().freezes;
        sum.events.reencodes += entry->tensor->counters().reencodes;
        sum.events.promotions += entry->tensor->counters().promotions;
        sum.events.steps += entry->tensor->counters().steps;
        sum.events.steps_again += entry->tensor->counters().steps_again;
    }
    return sum;
}

void KvBuffer::say_goodbye() const {
    if (settings_.verbose < 1 || entries_.empty()) return;
    const auto [memory, events] = totals();
    MIXED_KV_LOG(INFO,
                 "cache closed: hot %.2f, cold %.2f, overlay %.2f, pinned %.2f MiB; %llu pages frozen, %llu "
                 "encoded again, %llu hot again",
                 mib(double(memory.hot)), mib(double(memory.cold)), mib(double(memory.overlay)),
                 mib(double(memory.pinned)), static_cast<unsigned long long>(events.freezes),
                 static_cast<unsigned long long>(events.reencodes),
                 static_cast<unsigned long long>(events.promotions));
}

void KvBuffer::report_placement() {
    if (placement_reported_ || attended_layers_.empty()) return;
    placement_reported_ = true;
    std::string layers;
    for (int layer : offered_layers_) {
        if (attended_layers_.count(layer) == 0)
            layers += (layers.empty() ? "" : ", ") + std::to_string(layer);
    }
    if (layers.empty()) return;
    Report::instance().say(
        true,
        "attention of layer(s) " + layers +
            " runs on the CPU over decoded copies of the cache (they share another layer's K and V, and "
            "the host's scheduler places them there): right, but slow");
}

}  // namespace mixed_kv::plugin
