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
    if (node->op != GGML_OP_FLASH_ATTN_EXT) return false;
    finish_pending(std::nullopt);
    ++n_seen_;
    const std::optional<LayerGuess> guess = guess_layer(node);
    return options_.layer < 0 || !guess || !guess->certain || guess->layer == options_.layer;
}

void Recorder::keep(const ggml_tensor* node) {
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
    ++n_records_;
    options_.on_record(record);
}

}  // namespace mixed_kv::tools
