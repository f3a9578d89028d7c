#pragma once

#include <cstddef>
#include <cstdint>

#include "kv_buffer.h"

namespace mixed_kv::plugin {

// What one K or V tensor takes, in bytes, when n_rows cells of every stream hold rows of one sequence that
// grew token by token (docs/memory.md has the formula):
//   hot      pages that reach into the window or are not full, FP16
//   cold     all other pages, and an overlay row for every sink
//   records  what the tensor keeps beside its rows, without what its cache shares (of a KvEntry only)
// A tensor that is not mixed takes its plain F16 size whatever its fill, as llama.cpp's own cache would.
struct TensorMemory {
    double hot = 0, cold = 0, records = 0;
    double total() const noexcept { return hot + cold + records; }
};

// A tensor as far as its size depends on it. Without heads, a likely size of head is taken.
struct StoredTensor {
    KvRole role = KvRole::key;
    std::size_t row_bytes = 0;  // one cell's row, all heads, as declared
    std::int64_t n_cells = 0;   // per stream
    int n_stream = 1;
    HeadShape heads;
    const ColdFormat* format = nullptr;  // null: exact f16
    bool mixed = true;
};
StoredTensor stored_tensor(const KvEntry& entry);  // on the lowest rung, where there is a ladder
TensorMemory expected_memory(const StoredTensor& tensor, const Settings& settings, std::int64_t n_rows);
TensorMemory expected_memory(const KvEntry& entry, const Settings& settings, std::int64_t n_rows);

// Of a whole cache, trackers included, in bytes, with every cell in use.
double expected_memory(const KvBuffer& buffer);

// How many times more FP16 cache than memory is needed for it: what a long context takes in FP16 over what it
// takes with these settings. For hosts that count caches at their declared F16 size.
double f16_equivalent(const Settings& settings);

// Bytes that new caches may still take: what the system has, and what GGML_MIXED_KV_LIMIT_MB, or a budget in
// MiB, leaves beside the live caches.
std::size_t memory_for_caches(std::size_t available, const Settings& settings);

}  // namespace mixed_kv::plugin
