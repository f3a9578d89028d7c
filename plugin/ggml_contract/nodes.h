#pragma once

#include <string>
#include <vector>

#include "kv_buffer.h"
#include "mixed_kv/flash_decode.h"
#include "mixed_kv/key_shift.h"

namespace mixed_kv::plugin {

// What a node of the host's graph means to the cache. This is the one place that reads sources, strides,
// types and op_params of nodes; everybody else takes what match() returns.
enum class OpKind {
    view,       // nothing to compute
    write,      // SET_ROWS of whole rows into a mixed tensor
    attention,  // FLASH_ATTN_EXT over mixed tensors
    shift,      // in-place ROPE over every cell of a mixed K tensor (K-shift)
    delegate,   // any other op on our memory: the host's CPU backend computes it; KV tensors it touches are
                // pinned
};

// Of OpKind::write.
struct CacheWrite {
    KvBuffer* buffer = nullptr;
    KvEntry* entry = nullptr;
    KvTensor::RowSource rows = {};
    std::int64_t n_rows = 0, row_elements = 0;

    // The global cell of each row.
    void read_cells(std::vector<std::int64_t>& cells) const;

    std::int64_t first_cell = 0;  // of the view that is written: indices count from there
    const std::byte* indices = nullptr;
    std::ptrdiff_t index_stride = 0;  // bytes
    bool wide_indices = false;        // 64 bits
};

// Of OpKind::attention. Queries of all streams see the cells of n_stream streams of K and V.
struct CacheAttention {
    KvBuffer* buffer = nullptr;
    KvEntry *k = nullptr, *v = nullptr;  // the same for MLA
    int k_stream = 0, v_stream = 0;      // the first
    int layer = -1;                      // of the query, from the name llama.cpp gives it; -1: unknown
    AttentionArgs args;                  // everything but the page tables

    HeadShape k_heads() const noexcept { return {args.n_head_kv, args.head_dim_k}; }
    HeadShape v_heads() const noexcept { return {args.n_head_kv, args.head_dim_v}; }
};

// Of OpKind::shift.
struct CacheShift {
    KvBuffer* buffer = nullptr;
    KvEntry* entry = nullptr;
    RotaryPairs pairs;  // in a head of head_dim channels
    int head_dim = 0;
    const std::int32_t* distances = nullptr;  // [n_cells], of every cell
    std::int64_t n_cells = 0;
    std::size_t row_width = 0,
                first_channel = 0;  // of the node's rows, and where in them the rotation begins
};

struct Match {
    OpKind kind = OpKind::delegate;
    CacheWrite write;
    CacheAttention attention;
    CacheShift shift;
};

// Changes nothing. The same matcher answers supports_op and drives the compute, so they cannot disagree.
Match match(const ggml_tensor* op);
// Only whether it is one, without what it reads: for every node of every graph.
bool is_view_node(const ggml_tensor* op);
bool is_cache_attention(const ggml_tensor* op);

// The host's own ROPE of a K-shift, with all its parameters, over rows of ours: float [n][row_width] at n
// positions.
class HostRope {
  public:
    HostRope(const ggml_tensor* shift, std::size_t n, float* in, float* out, const std::int32_t* positions);
    HostRope(const HostRope&) = delete;
    HostRope& operator=(const HostRope&) = delete;
    ggml_tensor* node() noexcept { return &rope_; }

  private:
    ggml_tensor rope_, rows_, positions_;
};

// Every mixed tensor that an op writes or reads: (entry, its buffer).
template <typename Fn>
void for_each_cache(const ggml_tensor* op, Fn&& fn) {
    const auto visit = [&](const ggml_tensor* t) {
        KvEntry* entry = t == nullptr ? nullptr : KvBuffer::entry_of(t);
        if (entry != nullptr && entry->mixed()) fn(*entry, *KvBuffer::buffer_of(t));
    };
    visit(op);
    for (const ggml_tensor* src : op->src) visit(src);
}

// For a delegated op: why the KV tensors it touches have to be plain F16.
std::string pin_reason(const ggml_tensor* op);

}  // namespace mixed_kv::plugin
