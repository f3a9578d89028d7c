#pragma once

// The plugin's own C interface, for tools and tests. Reach it without linking to the plugin:
//
//   ggml_backend_reg_t reg = ggml_backend_reg_by_name("mixed-kv");
//   auto api = (mixed_kv_get_api_t) ggml_backend_reg_get_proc_address(reg, "mixed_kv_get_api");
//   const struct mixed_kv_api * mkv = api(MIXED_KV_API_VERSION);  // NULL: another version
//
// Plain C, so that it fits any client. All functions may be called from any thread between computes.

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define MIXED_KV_REG_NAME "mixed-kv"
#define MIXED_KV_DEVICE_NAME "MixedKV"
#define MIXED_KV_API_VERSION 4

struct ggml_tensor;

// Sums over every live cache of the process.
struct mixed_kv_counters {
    // Bytes held, by kind of storage.
    uint64_t hot_bytes, cold_bytes, overlay_bytes, pinned_bytes, bookkeeping_bytes;
    uint64_t arena_resident_bytes;  // mapped for pages: in use, and kept for reuse
    uint64_t rows_written;          // live rows, all layers, K and V
    uint64_t f16_bytes_written;     // what those rows would take in FP16
    uint64_t f16_bytes_declared;    // what the caches would take in FP16 at full length
    uint64_t values_written;        // elements of the live rows
    uint64_t budget_bytes;          // what budgets leave for pages; 0: no cache has one
    // Events since the plugin was loaded.
    uint64_t freezes, reencodes, promotions, pins;
    uint64_t steps;        // pages that stepped down the ladder of a budget
    uint64_t steps_again;  // of these, pages that were in a cold format already
    uint64_t native_ops, delegated_ops, graphs;
    uint32_t n_caches;  // live buffers that hold KV tensors
    uint32_t n_tensors_mixed, n_tensors_pinned, n_tensors_plain;
};

// Storage of one cell of a K or V tensor.
enum mixed_kv_cell {
    MIXED_KV_CELL_NOT_OURS = -1,
    MIXED_KV_CELL_EMPTY = 0,
    MIXED_KV_CELL_HOT = 1,
    MIXED_KV_CELL_COLD = 2,
    MIXED_KV_CELL_OVERLAY = 3,  // FP16 row of a cold page
    MIXED_KV_CELL_PINNED = 4,
};

// 64 rows in a cold format. Cell t of the page, if it is one of `cells`, is row (t - rotation) mod 64.
struct mixed_kv_block {
    const void* data;  // [n_head][block_bytes]
    uint64_t cells;
    int32_t rotation;
    int32_t code_bits;  // of its format: "q4" has 4; under a budget, blocks of a tensor differ
};

#define MIXED_KV_MAX_BLOCKS 4

// One page as stored, for traces and tests (docs/data-layout.md). Pointers are valid until the next compute.
struct mixed_kv_page {
    int32_t state;             // MIXED_KV_CELL_EMPTY, _HOT, _COLD or _PINNED
    uint64_t written;          // bit t: cell 64 * page + t holds a row
    uint64_t overlay;          // bit t: its row is in overlay_rows
    const void* data;          // hot fp16 [n_head][64][head_dim]; pinned fp16 [64][n_head][head_dim]
    const void* overlay_rows;  // cold: fp16 [popcount(overlay)][n_head][head_dim]
    int32_t n_blocks;          // cold: rows that are not in overlay_rows
    struct mixed_kv_block blocks[MIXED_KV_MAX_BLOCKS];
    int32_t shift_pending;  // cold keys: a K-shift is still to be applied to what the blocks decode to; rows
                            // read through ggml_backend_tensor_get() have it
};

struct mixed_kv_tensor_info {
    char name[64];  // as created: cache_k_l0
    int32_t is_value;
    int32_t mixed;                       // 0: pinned or plain, see reason
    char reason[128];                    // why not mixed; empty otherwise
    int64_t n_cells;                     // per stream
    int32_t n_stream, n_head, head_dim;  // heads as attention sees them; n_head 0: not known yet
    char format[8];                      // "f16", "q4", ...; under a budget the widest of its blocks
    char ladder[24];       // formats under a budget, the widest first: "q8 q4 q3"; empty: no budget
    uint64_t block_bytes;  // of one head's cold page in `format`
    uint64_t hot_bytes, cold_bytes, overlay_bytes, pinned_bytes;
    uint64_t rows_written;  // live rows of n_head * head_dim values
};

// A half-open address range, for measuring resident memory in /proc/self/smaps or with mincore().
struct mixed_kv_range {
    const void* begin;
    const void* end;
};

struct mixed_kv_api {
    uint32_t version;
    void (*counters)(struct mixed_kv_counters* out);
    // The lines said at creation and since (one per cache, and one per reason why mixed storage is not in
    // effect), newline-separated. Returns the length needed; writes at most size bytes, always terminated
    // when size > 0.
    size_t (*report)(char* out, size_t size);
    // Every KV tensor of every live cache, in order of creation. Returns how many there are; fills at most n.
    size_t (*tensors)(struct mixed_kv_tensor_info* out, size_t n);
    // Every address range that holds cache contents (page arenas and reservations). Returns how many there
    // are.
    size_t (*ranges)(struct mixed_kv_range* out, size_t n);
    // t: a K or V cache tensor or a view of it, as seen in an evaluation callback.
    // cell: counted from the view's first row.
    enum mixed_kv_cell (*cell_state)(const struct ggml_tensor* t, int64_t stream, int64_t cell);
    // False when t is not one of ours. page: 64 cells from the stream's cell 0.
    int (*page)(const struct ggml_tensor* t, int64_t stream, int64_t page, struct mixed_kv_page* out);
    int (*tensor_info)(const struct ggml_tensor* t, struct mixed_kv_tensor_info* out);
    // Changes the settings of caches created from now on, for tools that compare several in one process:
    // "preset=small,window=128,sinks=8,k=q4,v=q4,layers=0,-1:q8,isa=scalar" (also bits=, calibration=,
    // budget=, ladder=, limit_mb=);
    // what is not named takes its default. An empty text returns to the environment's. Returns 1, or 0 with
    // one line in error (at most size bytes) and nothing changed.
    int (*configure)(const char* text, char* error, size_t size);
    // Name of the active kernel set ("scalar", "avx2", ...).
    const char* (*isa)(void);
    // The ggml this plugin was built for.
    const char* (*built_for_version)(void);
    const char* (*built_for_commit)(void);
};

typedef const struct mixed_kv_api* (*mixed_kv_get_api_t)(uint32_t version);

#ifdef __cplusplus
}
#endif
