#include "kqv-trace-monitor/recorder.h"

#include <utility>

namespace mixed_kv::tools {

bool Recorder::on_node(ggml_tensor* node, bool ask, void* self) noexcept {
    auto& recorder = *static_cast<Recorder*>(self);
    if (!recorder.active_ || recorder.error_) return !ask;
    try {
        if (ask) return recorder.wants(node);
        recorder.keep(node);
    } catch (...) {  // no exception may pass through llama.cpp
        recorder.error_ = std::current_exception();
    }
    return !ask;
}

void Recorder::begin_step(int32_t step, int64_t position) {
    active_ = true;
    step_ = step;
    position_ = position;
    last_layer_ = -1;
    written_.clear();
    n_seen_ = n_left_out_ = 0;
}

void Recorder::end_step() {
    active_ = false;
    if (!error_) {
        try {
            finish_pending(std::nullopt);
        } catch (...) {
            error_ = std::current_exception();
        }
    }
    pending_.reset();
    if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
}

bool Recorder::wants(const ggml_tensor* node) {
    if (pending_) {
        if (const auto layer = output_layer(node)) finish_pending(layer);
    }
    if (options_.keep_originals && writes_cache_rows(node)) return true;
    if (node->op != GGML_OP_FLASH_ATTN_EXT) return false;
    finish_pending(std::nullopt);
    ++n_seen_;
    const std::optional<LayerGuess> guess = guess_layer(node);
    return options_.layer < 0 || !guess || !guess->certain || guess->layer == options_.layer;
}

void Recorder::keep(const ggml_tensor* node) {
    if (auto write = captured_write(node)) {
        if (options_.layer < 0 || write->layer == options_.layer) written_.push_back(std::move(*write));
        return;
    }
    pending_ = Pending{capture_attention(node, options_.api, options_.sources), guess_layer(node)};
}

void Recorder::finish_pending(std::optional<int32_t> layer) {
    if (!pending_) return;
    Pending pending = std::move(*pending_);
    pending_.reset();
    if (!layer && pending.guess) layer = pending.guess->layer;
    if (layer && options_.layer >= 0 && *layer != options_.layer) return;
    if (!layer || *layer <= last_layer_) {
        ++n_left_out_;
        return;
    }
    last_layer_ = *layer;
    trace::TraceRecord& record = pending.record;
    record.layer = *layer;
    record.step = step_;
    record.position = position_;
    if (options_.keep_originals) attach_written(record);
    ++n_records_;
    options_.on_record(record);
}

// The rows of this layer's own cache, K and V; with the shape of its heads, and streams as its views count
// them.
void Recorder::attach_written(trace::TraceRecord& record) {
    trace::WrittenRows k, v;
    for (CacheWrite& write : written_) {
        if (write.layer != record.layer) continue;
        const trace::SourceView& view = write.is_value ? record.v_view : record.k_view;
        const int64_t head_dim = write.is_value ? record.head_dim_v : record.head_dim_k;
        trace::Shape& ne = write.rows.rows.ne;
        // Heads that the cache pads are not what attention reads.
        if (ne[0] * ne[1] != head_dim * record.n_head_kv || view.origin_name.empty()) continue;
        ne[0] = head_dim;
        ne[1] = record.n_head_kv;
        const auto first_stream = int32_t(view.view_offs / view.origin_nb[2]);
        for (size_t i = 0; i < write.rows.cells.size(); i += 2) write.rows.cells[i] -= first_stream;
        (write.is_value ? v : k) = std::move(write.rows);
    }
    if (k.cells.empty() || v.cells.empty() != record.v_is_view_of_k) {
        ++n_without_originals_;
        return;
    }
    record.keeps_written = true;
    record.k_written = std::move(k);
    record.v_written = std::move(v);
}

}  // namespace mixed_kv::tools
