#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "trace/ggml_types.h"

// What a trace file holds, as C++ structs: the inputs and the output of one attention op, once per layer and
// step. docs/trace-format.md is the definition for readers that do not use this code; keep both in step.

namespace mixed_kv::trace {

inline constexpr int64_t kTraceSchemaVersion = 1;

// general.architecture of a trace file.
inline constexpr char kTraceArchitecture[] = "mixed-kv-trace";

// Keys of the file.
inline constexpr char kKeySchema[] = "mixed_kv.trace.schema";    // u32, kTraceSchemaVersion
inline constexpr char kKeyForm[] = "mixed_kv.trace.form";        // string, "self-contained" or "compact"
inline constexpr char kKeyRecords[] = "mixed_kv.trace.records";  // u64, number of records
inline constexpr char kKeyStrings[] =
    "mixed_kv.trace.strings";  // array of string, the texts that meta- indexes

enum class CacheKind : int64_t { standard = 0, mixed = 1 };
enum class TraceForm : int64_t { self_contained = 0, compact = 1 };

// Why a row of a mixed cache is stored exactly.
enum class RowKind : int32_t {
    hot = 0,      // in a hot page
    pinned = 1,   // in a pinned page
    overlay = 2,  // single row kept exact over a cold page; it takes precedence over the page's codes
};

// A contiguous tensor in memory. ne in ggml's order, fastest first.
struct TensorData {
    GgmlType type = GgmlType::f32;
    Shape ne{0, 1, 1, 1};
    std::vector<std::byte> bytes;  // tensor_bytes(type, ne) of them
};

// A tensor as the op saw it (a view, permuted), and the tensor whose memory it views. The trace stores the
// data in memory order; these fields tell how the op addressed it.
struct SourceView {
    bool present = false;
    std::string name;
    GgmlType type = GgmlType::f32;
    Shape ne{1, 1, 1, 1};     // as the op sees it
    Shape nb{};               // bytes from one element to the next per dimension
    Shape order{0, 1, 2, 3};  // the op's dimensions, the one closest together in memory first
    int64_t view_offs = 0;    // bytes from the start of the origin
    std::string origin_name;  // empty: it is no view
    GgmlType origin_type = GgmlType::f32;
    Shape origin_ne{1, 1, 1, 1};
    Shape origin_nb{};
};

// The `order` of a view: dimensions by ascending stride; dimensions of one element keep their place after
// those of equal stride.
Shape axis_order(const Shape& ne, const Shape& nb);

// A page of cold codes: `page_tokens` consecutive cells of one stream beginning at first_cell. The last page
// of a stream may reach beyond n_kv; those cells do not count. docs/cold-formats.md describes the codes.
struct ColdPage {
    int64_t first_cell = 0;  // stream * n_kv + index, as for rows
    int64_t shift = 0;       // positions by which RoPE must still move the decoded keys; 0: none
    int64_t flags = 0;       // none defined yet, 0
    uint64_t written =
        ~uint64_t{0};  // bit t: cell first_cell + t holds a row (t < 64); others are never visible
    bool operator==(const ColdPage&) const = default;
};

// How cold pages are encoded. All that is needed to decode a page besides docs/cold-formats.md.
struct ColdLayout {
    std::string format;       // "q8", "q6", "q5", "q4", "q3", "q2"; empty: this part is never cold
    int64_t page_tokens = 0;  // cells per page
    int64_t block_bytes = 0;  // encoded bytes of one page and KV head
    int64_t rotation_block =
        0;  // width of the normalised Hadamard transform along head_dim; <= 1: not rotated
};

// The K or the V side of an attention op's cache.
//
// A cell is one token's place in the op's view of the cache; with several streams its number is
// stream * n_kv + index. Cells in neither list hold nothing and are never visible.
struct CachePart {
    // Exact rows, [n_rows][n_head_kv][head_dim] (ne = head_dim, n_head_kv, n_rows). F16 in a mixed cache, the
    // cache's own type in a standard one.
    TensorData rows;
    std::vector<int32_t> cells;  // n_rows, the cell of each row, no cell twice
    std::vector<RowKind> kinds;  // n_rows

    ColdLayout cold;
    // Codes as stored, i8 [n_pages][n_head_kv][block_bytes] (ne = block_bytes, n_head_kv, n_pages).
    TensorData codes;
    std::vector<ColdPage> pages;  // n_pages, not overlapping
};

struct TraceRecord {
    int32_t layer = 0;
    int32_t step = 0;
    CacheKind cache = CacheKind::standard;
    bool has_sources = true;      // false: only kqv_out was recorded
    bool v_is_view_of_k = false;  // MLA: a row of V is the first head_dim_v values of the K row; `v` is empty
    bool v_transposed = false;  // the cache holds V with cells fastest (no flash attention); rows are stored
                                // here in the usual order

    int64_t n_tokens = 0;  // queries per stream
    int64_t n_head = 0;
    int64_t n_head_kv = 0;  // n_head is a multiple of it
    int64_t n_kv = 0;       // cells per stream that the op looks at
    int64_t n_stream = 1;
    int64_t head_dim_k = 0;
    int64_t head_dim_v = 0;

    float kq_scale = 1.0f;       // logits = kq_scale * dot(q, k); with a soft-cap c, c * tanh of it / c
    float max_bias = 0.0f;       // ALiBi, 0: none
    float logit_softcap = 0.0f;  // 0: none

    std::string op_name;    // "FLASH_ATTN_EXT"
    std::string node_name;  // the node's name in the graph

    TensorData kqv_out;  // f32 [n_stream][n_tokens][n_head][head_dim_v]
    TensorData q;        // f32 [n_stream][n_tokens][n_head][head_dim_k]
    CachePart k;
    CachePart v;
    std::optional<TensorData>
        mask;  // f16 or f32 [n_stream or 1][n_head or 1][>= n_tokens][n_kv], added to logits
    std::optional<TensorData> sinks;  // f32 [n_head], one extra logit per head
    std::vector<int32_t> positions;   // [n_pos][n_stream * n_tokens]: n_pos planes (M-RoPE: 4), or empty

    SourceView kqv_out_view, q_view, k_view, v_view, mask_view, sinks_view;
};

// Checks that all parts of a record fit together: dimensions, types, sizes, finite scalars, cells in range
// and not twice, hot rows outside and overlay rows inside cold pages, pages not overlapping, and that every
// cell which the mask shows to some query is stored. Throws Error naming layer, step and tensor.
void validate(const TraceRecord& record);

// The part of validate() that needs no tensor: dimensions and scalars.
void validate_dimensions(const TraceRecord& record);

// Where a cell's row is found.
struct CellPlace {
    enum class Where { nowhere, row, page } where = Where::nowhere;
    int32_t index = 0;  // into CachePart::cells or CachePart::pages
    int32_t token = 0;  // within the page
};

// The place of every cell, [n_stream * n_kv]: exact rows take precedence over pages. The record must be
// valid.
std::vector<CellPlace> locate_cells(const TraceRecord& record, const CachePart& part);

// --- names

// "<kind>-<layer>_step_<step>"
std::string tensor_name(std::string_view kind, int32_t layer, int32_t step);

struct ParsedName {
    std::string_view kind;
    int32_t layer = 0;
    int32_t step = 0;
};

// The parts of such a name, or nothing if it is none.
std::optional<ParsedName> parse_tensor_name(std::string_view name) noexcept;

// --- the meta tensor: i64, one per record

// Indexes into meta-<layer>_step_<n>.
namespace meta {
enum Field : size_t {
    schema,
    layer,
    step,
    cache,
    form,
    flags,  // sum of Flag
    n_tokens,
    n_head,
    n_head_kv,
    n_kv,
    n_stream,
    head_dim_k,
    head_dim_v,
    op_name,    // index into mixed_kv.trace.strings
    node_name,  // likewise
    n_pos,
    pos_layer,  // whose pos- tensor holds the positions; -1: none
    pos_step,
};
// Where groups of fields begin; fields 18 to 23 are 0.
inline constexpr size_t k_cold = 24;  // kColdFields
inline constexpr size_t v_cold = 32;  // kColdFields
inline constexpr size_t views = 40;   // kViewFields each, in the order of View

enum Flag : int64_t { flag_v_is_view_of_k = 1, flag_v_transposed = 2, flag_no_sources = 4 };

enum ColdField : size_t {
    cold_format,
    cold_page_tokens,
    cold_block_bytes,
    cold_rotation,
    cold_n_pages,
    cold_n_rows
};
inline constexpr size_t kColdFields = 8;

enum View : size_t { view_kqv_out, view_q, view_k, view_v, view_mask, view_sinks, view_count };
enum ViewField : size_t {
    view_present,
    view_type,
    view_ne,                   // 4
    view_nb = view_ne + 4,     // 4
    view_order = view_nb + 4,  // 4
    view_offs = view_order + 4,
    view_name,
    view_origin,  // -1: no view
    view_origin_type,
    view_origin_ne,                          // 4
    view_origin_nb = view_origin_ne + 4,     // 4
    view_stored_layer = view_origin_nb + 4,  // whose tensor holds the data; -1: not stored, or k and v
    view_stored_step,
};
inline constexpr size_t kViewFields = 32;
inline constexpr size_t kFields = views + view_count * kViewFields;
}  // namespace meta

// Fields of scalars-<layer>_step_<n>, f32.
enum ScalarField : size_t { scalar_kq_scale, scalar_max_bias, scalar_logit_softcap, kScalarFields };

}  // namespace mixed_kv::trace
