#pragma once

#include <ggml.h>

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

// Flash decoding over a hot FP16 part and a quantised cold part of a KV cache, as nodes for anyone's ggml
// graph on the CPU backend. Shapes below are ggml's ne, fastest dimension first.
namespace mixed_kv::ggml_op {

// Cells [0, n_kv) are the columns of the mask. A cell is given by a hot row, by a cold page, or by both: the
// hot row then takes precedence. A cell given by neither reads as zero.
struct FlashDecodeInputs {
    ggml_tensor* q = nullptr;  // f32 [head_dim, n_q, n_head], contiguous rows, any other strides
    ggml_tensor* k = nullptr;  // hot keys: f16 [head_dim, n_hot, n_head_kv], likewise; null: none
    ggml_tensor* v = nullptr;  // hot values: f16 [head_dim_v, n_hot, n_head_kv]; null: none
    ggml_tensor* k_quant =
        nullptr;  // cold keys, null: none; either
                  //   i8 [block_bytes, n_head_kv, n_pages], contiguous, in a registered cold format,
                  //   or q8_0, q5_0, q4_0 [head_dim, n_cold, n_head_kv], any strides
    ggml_tensor* v_quant = nullptr;  // cold values, likewise
    ggml_tensor* mask = nullptr;  // f16 [n_kv, >= n_q, 1 or a divisor of n_head], null: every cell is visible
    ggml_tensor* sinks = nullptr;  // f32 [n_head], one extra logit per head, or null
};

// Which cells the rows of the inputs are, where they are not simply cold rows first, then hot rows.
struct CellList {
    std::vector<std::int32_t> rows;   // cell of every hot row, none twice
    std::vector<std::int32_t> pages;  // first cell, a multiple of 64, of every 64 cold rows, none twice
};

struct FlashDecodeParams {
    float kq_scale = 1.0f;
    float max_bias = 0.0f;       // ALiBi, 0: none
    float logit_softcap = 0.0f;  // 0: none
    std::string
        k_format;  // of an i8 k_quant: a registered cold format; else empty, or ggml's name of the type
    std::string v_format;
    std::int64_t n_kv = -1;  // -1: all cells of the inputs. Less cuts off the end of the last cold page
    const CellList* k_cells =
        nullptr;  // read by build() only; null: cold rows are the first cells, hot rows follow
    const CellList* v_cells = nullptr;
    bool v_is_k = false;  // MLA: v and v_quant are null, a value is the first head_dim_v channels of its key
    int head_dim_v = 0;   // for v_is_k
    std::string isa;      // kernel set; empty: MIXED_KV_ISA, else the fastest that this CPU can run
};

// Owns what one op needs at run time: pages, plan, workspace. It must outlive every computation of the graph
// that build() added to, and a graph must not be computed twice at the same time. Computing it again reads
// the inputs afresh; they must then have the shapes and strides they had.
class FlashDecodeOp {
  public:
    FlashDecodeOp();
    ~FlashDecodeOp();
    FlashDecodeOp(const FlashDecodeOp&) = delete;
    FlashDecodeOp& operator=(const FlashDecodeOp&) = delete;

    // Adds three nodes (gather rows and plan, attend, merge) and returns the last: f32 [head_dim_v, n_head,
    // n_q]. Once per object. Throws Error, one line, for inputs that do not fit together and for unknown
    // formats and kernel sets.
    ggml_tensor* build(ggml_context* ctx, const FlashDecodeInputs& inputs, const FlashDecodeParams& params);

    // The kernel set in use, after build().
    std::string_view isa() const noexcept;

  private:
    struct Impl;
    std::unique_ptr<Impl> impl_;
};

}  // namespace mixed_kv::ggml_op
