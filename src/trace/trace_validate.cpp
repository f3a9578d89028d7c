#include <algorithm>
#include <cmath>
#include <cstring>

#include "mixed_kv/error.h"
#include "mixed_kv/fp16.h"
#include "trace/text.h"
#include "trace/trace_schema.h"

namespace mixed_kv::trace {
namespace {

// No cache is larger; keeps every product of two dimensions far from 2^63.
constexpr int64_t kMaxDimension = int64_t{1} << 31;
// Far above any context; bounds what the checks below allocate for a damaged file to a few dozen MiB.
constexpr int64_t kMaxCells = int64_t{1} << 28;

class Validator {
  public:
    explicit Validator(const TraceRecord& record) : r_(record) {}

    void check_numbers() const {
        check_range("layer", r_.layer, 0, INT32_MAX);
        check_range("step", r_.step, 0, INT32_MAX);
        check_range("n_tokens", r_.n_tokens, 1, kMaxDimension);
        check_range("n_head", r_.n_head, 1, 1 << 20);
        check_range("n_head_kv", r_.n_head_kv, 1, r_.n_head);
        check_range("n_kv", r_.n_kv, 0, kMaxDimension);
        check_range("n_stream", r_.n_stream, 1, 1 << 20);
        check_range("head_dim_k", r_.head_dim_k, 1, 1 << 20);
        check_range("head_dim_v", r_.head_dim_v, 1, 1 << 20);
        if (r_.n_head % r_.n_head_kv != 0) {
            fail("meta", cat("n_head ", r_.n_head, " is no multiple of n_head_kv ", r_.n_head_kv));
        }
        if (r_.n_kv * r_.n_stream > kMaxCells || r_.n_tokens * r_.n_stream > kMaxCells) {
            fail("meta", cat("n_kv ", r_.n_kv, " or n_tokens ", r_.n_tokens, " times n_stream ", r_.n_stream,
                             " exceeds ", kMaxCells));
        }
        const auto check_scalar = [this](const char* name, float value, bool may_be_negative) {
            if (!std::isfinite(value) || (!may_be_negative && value < 0.0f)) {
                fail("scalars", cat(name, " ", value, " is not a finite ",
                                    may_be_negative ? "" : "non-negative ", "number"));
            }
        };
        check_scalar("kq_scale", r_.kq_scale, true);
        check_scalar("max_bias", r_.max_bias, false);
        check_scalar("logit_softcap", r_.logit_softcap, false);
    }

    void check_all() const {
        check_numbers();
        check_tensor("kqv_out", r_.kqv_out, {GgmlType::f32},
                     {r_.head_dim_v, r_.n_head, r_.n_tokens, r_.n_stream});
        check_view("kqv_out", r_.kqv_out_view);
        const int64_t n_queries = r_.n_tokens * r_.n_stream;
        if (r_.positions.size() % static_cast<size_t>(n_queries) != 0) {
            fail("pos", cat(r_.positions.size(), " positions for ", n_queries, " queries"));
        }
        if (!r_.has_sources) {
            return;
        }
        check_tensor("q", r_.q, {GgmlType::f32}, {r_.head_dim_k, r_.n_head, r_.n_tokens, r_.n_stream});
        check_view("q", r_.q_view);
        check_view("k", r_.k_view);
        check_view("v", r_.v_view);
        check_view("mask", r_.mask_view);
        check_view("sinks", r_.sinks_view);
        check_mask();
        if (r_.sinks) {
            check_tensor("sinks", *r_.sinks, {GgmlType::f32}, {r_.n_head, 1, 1, 1});
        }
        const std::vector<bool> visible = visible_cells();
        check_part("k", r_.k, r_.head_dim_k, visible);
        if (!r_.v_is_view_of_k) {
            check_part("v", r_.v, r_.head_dim_v, visible);
        } else if (!r_.v.cells.empty() || !r_.v.pages.empty()) {
            fail("v", "V is a view of K but has rows or pages of its own");
        } else if (r_.head_dim_v > r_.head_dim_k) {
            fail("v", cat("head_dim_v ", r_.head_dim_v, " exceeds head_dim_k ", r_.head_dim_k,
                          " of the K it views"));
        }
    }

  private:
    [[noreturn]] void fail(const char* tensor, const std::string& what) const {
        throw Error(cat("layer ", r_.layer, ", step ", r_.step, ", ", tensor, ": ", what));
    }

    void check_range(const char* name, int64_t value, int64_t low, int64_t high) const {
        if (value < low || value > high) {
            fail("meta", cat(name, " ", value, " is not between ", low, " and ", high));
        }
    }

    void check_tensor(const char* name, const TensorData& tensor, std::initializer_list<GgmlType> types,
                      const Shape& ne) const {
        if (std::find(types.begin(), types.end(), tensor.type) == types.end()) {
            const GgmlTypeInfo* info = find_ggml_type(static_cast<int32_t>(tensor.type));
            fail(name, cat("type ", info != nullptr ? info->name : "unknown", " is not allowed"));
        }
        if (tensor.ne != ne) {
            fail(name, cat("shape ", shape_text(tensor.ne), ", expected ", shape_text(ne)));
        }
        check_size(name, tensor);
    }

    void check_size(const char* name, const TensorData& tensor) const {
        uint64_t bytes = 0;
        try {
            bytes = tensor_bytes(tensor.type, tensor.ne);
        } catch (const Error& error) {
            fail(name, error.what());
        }
        if (tensor.bytes.size() != bytes) {
            fail(name,
                 cat(tensor.bytes.size(), " bytes, its shape ", shape_text(tensor.ne), " needs ", bytes));
        }
    }

    void check_view(const char* name, const SourceView& view) const {
        if (!view.present) {
            return;
        }
        Shape sorted = view.order;
        std::sort(sorted.begin(), sorted.end());
        if (sorted != Shape{0, 1, 2, 3}) {
            fail(name, cat("order ", shape_text(view.order), " of its view is no permutation of 0 to 3"));
        }
        const auto known = [](GgmlType type) {
            return find_ggml_type(static_cast<int32_t>(type)) != nullptr;
        };
        const auto negative = [](int64_t n) { return n < 0; };
        if (!known(view.type) || !known(view.origin_type) ||
            std::any_of(view.ne.begin(), view.ne.end(), negative) ||
            std::any_of(view.nb.begin(), view.nb.end(), negative) || view.view_offs < 0) {
            fail(name, "unknown type, negative dimension, stride or offset in its view");
        }
    }

    void check_mask() const {
        if (!r_.mask) {
            return;
        }
        // ggml broadcasts a mask over heads and streams and may pad its rows.
        const Shape ne = r_.mask->ne;
        if (ne[0] != r_.n_kv || ne[1] < r_.n_tokens || ne[2] < 1 || r_.n_head % ne[2] != 0 || ne[3] < 1 ||
            r_.n_stream % ne[3] != 0) {
            fail("mask", cat("shape ", shape_text(ne), " does not fit n_kv ", r_.n_kv, ", n_tokens ",
                             r_.n_tokens, ", n_head ", r_.n_head, ", n_stream ", r_.n_stream));
        }
        check_tensor("mask", *r_.mask, {GgmlType::f16, GgmlType::f32}, ne);
    }

    // Cells that some query sees: all of them without a mask.
    std::vector<bool> visible_cells() const {
        const auto n_cells = static_cast<size_t>(r_.n_kv * r_.n_stream);
        if (!r_.mask) {
            return std::vector<bool>(n_cells, true);
        }
        std::vector<bool> visible(n_cells, false);
        const Shape& ne = r_.mask->ne;
        const size_t value_bytes = r_.mask->type == GgmlType::f16 ? 2 : 4;
        for (int64_t stream = 0; stream < r_.n_stream; ++stream) {
            for (int64_t head = 0; head < ne[2]; ++head) {
                for (int64_t token = 0; token < r_.n_tokens; ++token) {
                    const int64_t row = ((stream % ne[3]) * ne[2] + head) * ne[1] + token;
                    const std::byte* at =
                        r_.mask->bytes.data() + static_cast<size_t>(row * ne[0]) * value_bytes;
                    for (int64_t cell = 0; cell < r_.n_kv; ++cell) {
                        if (mask_value(at + static_cast<size_t>(cell) * value_bytes) != -INFINITY) {
                            visible[static_cast<size_t>(stream * r_.n_kv + cell)] = true;
                        }
                    }
                }
            }
        }
        return visible;
    }

    float mask_value(const std::byte* at) const {
        if (r_.mask->type == GgmlType::f16) {
            fp16_t half = 0;
            std::memcpy(&half, at, sizeof(half));
            return fp16_to_fp32(half);
        }
        float value = 0.0f;
        std::memcpy(&value, at, sizeof(value));
        return value;
    }

    void check_part(const char* name, const CachePart& part, int64_t head_dim,
                    const std::vector<bool>& visible) const {
        const auto n_rows = static_cast<int64_t>(part.cells.size());
        if (part.kinds.size() != part.cells.size()) {
            fail(name, cat(n_rows, " cells but ", part.kinds.size(), " row kinds"));
        }
        if (r_.cache == CacheKind::mixed && part.rows.type != GgmlType::f16) {
            fail(name, "rows of a mixed cache must be f16");
        }
        check_tensor(name, part.rows, {part.rows.type}, {head_dim, r_.n_head_kv, n_rows, 1});

        std::vector<bool> in_page(visible.size(), false);
        std::vector<bool> stored(visible.size(), false);
        check_pages(name, part, in_page, stored);
        std::vector<bool> has_row(visible.size(), false);
        for (size_t i = 0; i < part.cells.size(); ++i) {
            const int64_t cell = part.cells[i];
            if (cell < 0 || static_cast<size_t>(cell) >= visible.size()) {
                fail(name, cat("row ", i, ": cell ", cell, " is not below ", visible.size()));
            }
            const auto at = static_cast<size_t>(cell);
            if (has_row[at]) {
                fail(name, cat("row ", i, ": cell ", cell, " has two rows"));
            }
            has_row[at] = true;
            stored[at] = true;
            const RowKind kind = part.kinds[i];
            if (kind != RowKind::hot && kind != RowKind::pinned && kind != RowKind::overlay) {
                fail(name, cat("row ", i, ": unknown kind ", static_cast<int32_t>(kind)));
            }
            if ((kind == RowKind::overlay) != in_page[at]) {
                fail(name, cat("row ", i, ": cell ", cell,
                               in_page[at] ? " lies in a cold page but its row is no overlay"
                                           : " lies in no cold page but its row is an overlay"));
            }
        }
        for (size_t cell = 0; cell < visible.size(); ++cell) {
            if (visible[cell] && !stored[cell]) {
                fail(name,
                     cat("cell ", cell, " is visible to a query but neither a row nor a page holds it"));
            }
        }
    }

    void check_pages(const char* name, const CachePart& part, std::vector<bool>& in_page,
                     std::vector<bool>& stored) const {
        const ColdLayout& cold = part.cold;
        const auto n_pages = static_cast<int64_t>(part.pages.size());
        if (cold.format.empty()) {
            if (n_pages != 0) {
                fail(name, cat(n_pages, " cold pages but no cold format"));
            }
            return;
        }
        if (r_.cache != CacheKind::mixed) {
            fail(name, cat("a standard cache has the cold format ", in_quotes(cold.format)));
        }
        check_range("page_tokens", cold.page_tokens, 1, 1 << 20);
        check_range("block_bytes", cold.block_bytes, 1, kMaxDimension);
        check_range("rotation_block", cold.rotation_block, 0, 1 << 20);
        check_tensor(cat(name, "_quant").c_str(), part.codes, {GgmlType::i8},
                     {cold.block_bytes, r_.n_head_kv, n_pages, 1});
        for (size_t i = 0; i < part.pages.size(); ++i) {
            const ColdPage& page = part.pages[i];
            if (page.first_cell < 0 || static_cast<size_t>(page.first_cell) >= in_page.size()) {
                fail(name,
                     cat("page ", i, ": first cell ", page.first_cell, " is not below ", in_page.size()));
            }
            const int64_t stream_end = (page.first_cell / r_.n_kv + 1) * r_.n_kv;
            const int64_t end = std::min(page.first_cell + cold.page_tokens, stream_end);
            for (int64_t cell = page.first_cell; cell < end; ++cell) {
                const auto at = static_cast<size_t>(cell);
                if (in_page[at]) {
                    fail(name, cat("page ", i, ": cell ", cell, " lies in two pages"));
                }
                in_page[at] = true;
                const int64_t bit = cell - page.first_cell;
                stored[at] = bit >= 64 || ((page.written >> bit) & 1) != 0;
            }
        }
    }

    const TraceRecord& r_;
};

}  // namespace

void validate(const TraceRecord& record) { Validator(record).check_all(); }

void validate_dimensions(const TraceRecord& record) { Validator(record).check_numbers(); }

}  // namespace mixed_kv::trace
