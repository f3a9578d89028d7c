#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "mixed_kv/mask_view.h"
#include "mixed_kv/page.h"

namespace mixed_kv {

namespace kernels {
struct KernelSet;
}

// What each page of a mask holds for a tile of 16 queries, so that attention skips what no query sees and
// reads no mask where all is visible. Computed once per graph and shared by its layers.
class MaskPages {
  public:
    enum Kind : std::uint8_t { hidden, visible, mixed };  // all -inf; all zero; anything else
    static constexpr int kTileQueries = 16;

    // mask.data may be null: everything is visible. Cells n_kv .. of the last page count as hidden (mixed
    // page). Reuses its memory from call to call.
    void classify(const MaskView& mask, int n_stream, std::int64_t n_q, std::int64_t n_kv);
    Kind kind(int stream, int head, std::int64_t query_tile, std::int64_t page) const noexcept;

    // Heads whose kinds are told apart; 1 when the mask is the same for all.
    int n_head() const noexcept { return n_head_; }
    std::int64_t n_pages() const noexcept { return n_pages_; }
    std::int64_t n_tiles() const noexcept { return n_tiles_; }

  private:
    int n_head_ = 1, mask_streams_ = 1;
    std::int64_t n_tiles_ = 0, n_pages_ = 0, n_kv_ = 0;
    std::vector<Kind> kinds_;  // [mask_streams_][n_head_][n_tiles_][n_pages_]; unused when all_visible_
    bool all_visible_ = false;
};

// One attention op, in the terms of GGML_OP_FLASH_ATTN_EXT.
struct AttentionArgs {
    int n_stream = 1;
    std::int64_t n_q = 0;   // query rows per stream
    std::int64_t n_kv = 0;  // cells per stream, from cell 0 of each page table
    int n_head = 0;         // query heads; n_gqa = n_head / n_head_kv
    int n_head_kv = 0;
    int head_dim_k = 0;
    int head_dim_v = 0;

    const float* q = nullptr;  // fp32 [n_stream][n_q][n_head][head_dim_k], any strides, in bytes:
    std::ptrdiff_t q_stream_stride = 0, q_row_stride = 0, q_head_stride = 0;

    const PageTable* k = nullptr;  // [n_stream]
    const PageTable* v = nullptr;  // [n_stream]; not read when v_is_k
    bool v_is_k = false;           // MLA: v is the first head_dim_v channels of k

    MaskView mask;
    float kq_scale = 1.0f;
    float max_bias = 0.0f;         // ALiBi: slopes as ggml computes them
    float logit_softcap = 0.0f;    // 0: none
    const float* sinks = nullptr;  // learned sink logits [n_head] or null

    float* out = nullptr;  // fp32 [n_stream][n_q][n_head][head_dim_v], contiguous heads; strides in bytes:
    std::ptrdiff_t out_stream_stride = 0, out_row_stride = 0, out_head_stride = 0;
};

// ALiBi slope of a head (Press et al. 2022, as ggml computes it); 1 when max_bias is 0.
float alibi_slope(float max_bias, int n_head, int head) noexcept;

// What threads need while they compute, [n_threads] pieces that only grow. Attentions that are run by the
// same threads one after the other may share it.
class ThreadScratch {
  public:
    ThreadScratch();
    ~ThreadScratch();
    ThreadScratch(const ThreadScratch&) = delete;
    ThreadScratch& operator=(const ThreadScratch&) = delete;

  private:
    friend class FlashDecode;
    struct Impl;
    std::unique_ptr<Impl> impl_;
};

// Flash-decoding over pages: split into work items over (stream, KV head, query tile, page range), each
// giving an attention state, merged in a fixed order. Results depend on the kernels, the arguments and
// n_threads only, not on which thread ran what. Reused from op to op; steady state allocates nothing.
class FlashDecode {
  public:
    // scratch: null for one of its own.
    explicit FlashDecode(const kernels::KernelSet& kernels, std::shared_ptr<ThreadScratch> scratch = nullptr);
    ~FlashDecode();
    FlashDecode(const FlashDecode&) = delete;
    FlashDecode& operator=(const FlashDecode&) = delete;

    // Serial, while nobody runs an attention that shares the scratch. What args points to must stay valid
    // until merge() has run; mask_pages is only read here. Throws std::bad_alloc only.
    void plan(const AttentionArgs& args, const MaskPages& mask_pages, int n_threads);
    // Parallel: threads of 0 .. n_threads - 1 call run(), each with its own number; after all that called
    // have returned, they call merge(). Work is claimed piece by piece, so some of the threads, or one, do
    // all of it.
    void run(int thread) noexcept;
    void merge(int thread) noexcept;
    // run() and merge() on the calling thread for a plan of one thread.
    void run_serial() noexcept;

    // Bytes of scratch, shared or not, and states held.
    std::size_t workspace_bytes() const noexcept;
    // Of these, the scratch of one thread for the op planned last: bounded by the shape, whatever n_kv is.
    std::size_t scratch_bytes_per_thread() const noexcept;

  private:
    struct Impl;
    std::unique_ptr<Impl> impl_;
};

}  // namespace mixed_kv
