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

inline constexpr int64_t kTraceSchemaVersion = 2;

// general.architecture of a trace file.
inline constexpr char kTraceArchitecture[] = "mixed-kv-trace";

// Keys of the file.
inline constexpr char kKeySchema[] = "mixed_kv.trace.schema";    // u32, kTraceSchemaVersion
inline constexpr char kKeyForm[] = "mixed_kv.trace.form";        // string, "self-contained" or "compact"
inline constexpr char kKeyRecords[] = "mixed_kv.trace.records";  // u64, number of records
inline constexpr char kKeyStrings[] =
    "mixed_kv.trace.strings";                            // array of string, the texts that meta- indexes
inline constexpr char kKeySum[] = "mixed_kv.trace.sum";  // u64, checksum of the other keys
inline constexpr char kInfoPrefix[] = "mixed_kv.trace.info.";  // string each, texts about the run

enum class CacheKind : int64_t { standard = 0, mixed = 1 };
enum class TraceForm : int64_t { self_contained = 0, compact = 1 };

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

// A block of page_tokens cold rows for cells of one stream from first_cell on: those in `held`. Several
// blocks may begin at the same cell if they hold different cells. docs/cold-formats.md describes the codes.
struct ColdPage {
    int64_t first_cell = 0;        // stream * n_kv + index, as for rows
    uint64_t held = ~uint64_t{0};  // bit t: cell first_cell + t has its row here,
    int64_t rotation = 0;          // as row (t - rotation) modulo page_tokens of the block
    int64_t format = 0;            // index in the layout's formats
    bool operator==(const ColdPage&) const = default;

    // The two in one number, as files have them: format * 64 + rotation.
    int64_t coding() const noexcept { return format * 64 + rotation; }
    static ColdPage with_coding(int64_t first_cell, uint64_t held, int64_t coding) noexcept {
        return coding < 0 ? ColdPage{first_cell, held, coding, 0}
                          : ColdPage{first_cell, held, coding % 64, coding / 64};
    }
};

// How cold pages are encoded. All that is needed to decode a page besides docs/cold-formats.md.
struct ColdLayout {
    // "q8", "q6", "q5", "q4", "q3" or "q2"; pages of several formats: all of them, "q8 q4 q3", the widest
    // first. Empty: this part is never cold.
    std::string format;
    int64_t page_tokens = 0;  // cells per page, at most 64
    int64_t block_bytes = 0;  // of one page and KV head, in the widest format; shorter blocks end in zeros
    int64_t rotation_block =
        0;  // width of the normalised Hadamard transform along head_dim; <= 1: not rotated
};

// The formats of a layout, by ColdPage::format.
std::vector<std::string> cold_formats_of(const ColdLayout& layout);

// The K or the V side of an attention op's cache.
//
// A cell is one token's place in the op's view of the cache; with several streams its number is
// stream * n_kv + index. It has a row, or one page holds it, or it holds nothing and is never visible.
struct CachePart {
    // Exact rows, [n_rows][n_head_kv][head_dim] (ne = head_dim, n_head_kv, n_rows). F16 in a mixed cache, the
    // cache's own type in a standard one.
    TensorData rows;
    std::vector<int32_t> cells;  // n_rows, the cell of each row

    ColdLayout cold;
    // Codes as stored, i8 [n_pages][n_head_kv][block_bytes] (ne = block_bytes, n_head_kv, n_pages).
    TensorData codes;
    std::vector<ColdPage> pages;  // n_pages
};

// Rows of K or V as a record's step wrote them into its layer's cache, before any encoding. Kept on request.
struct WrittenRows {
    TensorData rows;             // f16 [n][n_head_kv][head_dim] (ne = head_dim, n_head_kv, n)
    std::vector<int32_t> cells;  // [n][2]: stream, index in it, as the op's view has them
};

struct TraceRecord {
    int32_t layer = 0;
    int32_t step = 0;
    CacheKind cache = CacheKind::standard;
    bool has_sources = true;      // false: only kqv_out was recorded
    bool keeps_written = false;   // k_written and v_written are there
    bool v_is_view_of_k = false;  // MLA: a row of V is the first head_dim_v values of the K row; `v` is empty

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

    // Of the first token; the others follow one by one. A run begins with position 0 in step 0.
    int64_t position = 0;

    TensorData kqv_out;  // f32 [n_stream][n_tokens][n_head][head_dim_v]
    TensorData q;        // f32 [n_stream][n_tokens][n_head][head_dim_k]
    CachePart k;
    CachePart v;
    std::optional<TensorData>
        mask;  // f16 or f32 [n_stream or 1][n_head or 1][>= n_tokens][n_kv], added to logits
    std::optional<TensorData> sinks;   // f32 [n_head], one extra logit per head
    WrittenRows k_written, v_written;  // v_written stays empty where V is a view of K

    SourceView kqv_out_view, q_view, k_view, v_view, mask_view, sinks_view;
};

// Checks that all parts of a record fit together: dimensions, types, sizes, finite scalars, cells in range
// and held once, every cell stored that the mask shows to some query, and the views' numbers, which must lead
// from the origin's memory to the tensors recorded. Throws Error naming layer, step and tensor.
void validate(const TraceRecord& record);

// The part of validate() that needs no tensor: dimensions and scalars.
void validate_dimensions(const TraceRecord& record);

// The part that needs no bytes of tensors: where rows and pages lie.
void validate_places(const TraceRecord& record);

// The part about views.
void validate_views(const TraceRecord& record);

// Where a cell's row is found.
struct CellPlace {
    enum class Where { nowhere, row, page } where = Where::nowhere;
    int32_t index = 0;  // into CachePart::cells or CachePart::pages
    int32_t token = 0;  // the row within the page's block
};

// The place of every cell, [n_stream * n_kv]. The record must be valid.
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
    position,
};
// Where groups of fields begin. What has no name is 0.
inline constexpr size_t k_cold = 24;  // kColdFields
inline constexpr size_t v_cold = 32;  // kColdFields
inline constexpr size_t views = 40;   // kViewFields each, in the order of View

enum Flag : int64_t { flag_v_is_view_of_k = 1, flag_no_sources = 4, flag_keeps_written = 8 };

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
    view_end,
};
inline constexpr size_t kViewFields = 32;
inline constexpr size_t kFields = views + view_count * kViewFields;
}  // namespace meta

// Fields of scalars-<layer>_step_<n>, f32.
enum ScalarField : size_t { scalar_kq_scale, scalar_max_bias, scalar_logit_softcap, kScalarFields };

// Fields of sums-<layer>_step_<n>, i64: checksums of what the record is made of, 0 for what it has not.
enum SumField : size_t {
    sum_meta,
    sum_scalars,
    sum_kqv_out,
    sum_q,
    sum_mask,
    sum_sinks,
    sum_k,
    sum_v,
    kSumFields
};

// Fields of written_sums-<layer>_step_<n>, i64: checksums of k_written and v_written with their cells.
enum WrittenSumField : size_t { sum_k_written, sum_v_written, kWrittenSumFields };

}  // namespace mixed_kv::trace
