#pragma once

#include <ggml.h>

#include <cstdint>
#include <exception>
#include <functional>
#include <optional>
#include <vector>

#include "kqv-trace-monitor/capture.h"
#include "kqv-trace-monitor/written_rows.h"
#include "trace/trace_schema.h"

namespace mixed_kv::tools {

// Watches the evaluation of graphs and hands every attention op on as a record. Changes nothing: it only
// reads.
class Recorder {
  public:
    struct Options {
        int32_t layer = -1;  // -1: all
        Sources sources = Sources::record;
        bool keep_originals = false;  // what SET_ROWS writes into the caches
        const mixed_kv_api* api = nullptr;
        std::function<void(const trace::TraceRecord&)> on_record;
    };

    explicit Recorder(Options options) : options_(std::move(options)) {}

    // For llama_context_params::cb_eval, with this object as user data.
    static bool on_node(ggml_tensor* node, bool ask, void* self) noexcept;

    // Around each evaluation of one graph. end_step() throws what went wrong meanwhile.
    void begin_step(int32_t step, int64_t position);
    void end_step();

    int64_t n_records() const { return n_records_; }
    // Attention ops seen in the current step, traced or not.
    int64_t n_seen() const { return n_seen_; }
    // Ops of the current step that have no record: a second one of a layer, or one whose layer has no name.
    int64_t n_left_out() const { return n_left_out_; }
    // Records without their rows as they were written, although these were asked for.
    int64_t n_without_originals() const { return n_without_originals_; }

  private:
    struct Pending {
        trace::TraceRecord record;
        std::optional<LayerGuess> guess;
    };
    bool wants(const ggml_tensor* node);
    void keep(const ggml_tensor* node);
    void finish_pending(std::optional<int32_t> layer);
    void attach_written(trace::TraceRecord& record);

    Options options_;
    bool active_ = false;
    int32_t step_ = 0;
    int64_t position_ = 0;             // of the step's first token
    std::vector<CacheWrite> written_;  // in the current step
    std::optional<Pending> pending_;   // until the node that names its layer comes by
    int32_t last_layer_ = -1;
    int64_t n_records_ = 0, n_seen_ = 0, n_left_out_ = 0, n_without_originals_ = 0;
    std::exception_ptr error_;
};

}  // namespace mixed_kv::tools
