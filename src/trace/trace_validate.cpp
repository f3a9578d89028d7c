#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <set>

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
        check_range("position", r_.position, 0, kMaxDimension);
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
        if (!r_.has_sources) {
            if (r_.keeps_written) {
                fail("k_written", "rows as they were written, in a record without sources");
            }
            return;
        }
        check_tensor("q", r_.q, {GgmlType::f32}, {r_.head_dim_k, r_.n_head, r_.n_tokens, r_.n_stream});
        check_written("k_written", r_.k_written, r_.head_dim_k, r_.keeps_written);
        check_written("v_written", r_.v_written, r_.head_dim_v, r_.keeps_written && !r_.v_is_view_of_k);
        check_mask();
        if (r_.sinks) {
            check_tensor("sinks", *r_.sinks, {GgmlType::f32}, {r_.n_head, 1, 1, 1});
        }
        const std::vector<bool> visible = visible_cells();
        check_part("k", r_.k, r_.head_dim_k, visible);
        if (!r_.v_is_view_of_k) {
            check_part("v", r_.v, r_.head_dim_v, visible);
        } else if (!r_.v.cells.empty() || !r_.v.pages.empty() || !r_.v.cold.format.empty()) {
            fail("v", "V is a view of K but has rows, pages or a format of its own");
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

    // Rows of this record's shape, at most one for each token, at cells of the view.
    void check_written(const char* name, const WrittenRows& written, int64_t head_dim, bool kept) const {
        const auto n = static_cast<int64_t>(written.cells.size()) / 2;
        if (!kept) {
            if (!written.cells.empty() || !written.rows.bytes.empty()) {
                fail(name, "there, although the record says that it keeps none");
            }
            return;
        }
        if (n < 1 || n > r_.n_tokens * r_.n_stream || written.cells.size() % 2 != 0) {
            fail(name, cat(written.cells.size(), " numbers say where ", r_.n_tokens * r_.n_stream,
                           " tokens were written"));
        }
        check_tensor(name, written.rows, {GgmlType::f16}, {head_dim, r_.n_head_kv, n, 1});
        std::set<int64_t> seen;
        for (size_t i = 0; i < written.cells.size(); i += 2) {
            const int64_t stream = written.cells[i], cell = written.cells[i + 1];
            if (stream < 0 || stream >= r_.n_stream || cell < 0 || cell >= r_.n_kv ||
                !seen.insert(stream * r_.n_kv + cell).second) {
                fail(name, cat("row ", i / 2, ": cell ", cell, " of stream ", stream,
                               " is outside the view, or written twice"));
            }
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
        if (r_.cache == CacheKind::mixed && part.rows.type != GgmlType::f16) {
            fail(name, "rows of a mixed cache must be f16");
        }
        const auto n_rows = static_cast<int64_t>(part.cells.size());
        check_tensor(name, part.rows, {part.rows.type}, {head_dim, r_.n_head_kv, n_rows, 1});
        if (!part.cold.format.empty()) {
            check_tensor(cat(name, "_quant").c_str(), part.codes, {GgmlType::i8},
                         {part.cold.block_bytes, r_.n_head_kv, static_cast<int64_t>(part.pages.size()), 1});
        }
        const std::vector<bool> held = held_cells(name, part);
        for (size_t cell = 0; cell < visible.size(); ++cell) {
            if (visible[cell] && !held[cell]) {
                fail(name,
                     cat("cell ", cell, " is visible to a query but neither a row nor a page holds it"));
            }
            if (r_.cache == CacheKind::standard && !held[cell]) {
                fail(name, cat("cell ", cell, " of a standard cache has no row"));
            }
        }
    }

  public:
    // Cells that a row or page holds, each of them one.
    std::vector<bool> held_cells(const char* name, const CachePart& part) const {
        std::vector<bool> held(static_cast<size_t>(r_.n_kv * r_.n_stream), false);
        check_cold(name, part.cold, part.pages.size());
        const auto n_formats = static_cast<int64_t>(cold_formats_of(part.cold).size());
        for (size_t i = 0; i < part.pages.size(); ++i) {
            const ColdPage& page = part.pages[i];
            if (page.first_cell < 0 || static_cast<size_t>(page.first_cell) >= held.size()) {
                fail(name, cat("page ", i, ": first cell ", page.first_cell, " is not below ", held.size()));
            }
            const int64_t stream_end = (page.first_cell / r_.n_kv + 1) * r_.n_kv;
            const int64_t n = std::min(part.cold.page_tokens, stream_end - page.first_cell);
            if (page.held == 0 || (n < 64 && (page.held >> n) != 0)) {
                fail(name,
                     cat("page ", i, " at cell ", page.first_cell, " holds no cell, or one beyond its ", n));
            }
            if (page.rotation < 0 || page.rotation >= part.cold.page_tokens) {
                fail(name, cat("page ", i, " is rotated by ", page.rotation, " rows"));
            }
            if (page.format < 0 || page.format >= n_formats) {
                fail(name, cat("page ", i, " has format ", page.format, " of ", n_formats));
            }
            for (uint64_t left = page.held; left != 0; left &= left - 1) {
                hold(name, "page", i, page.first_cell + std::countr_zero(left), held);
            }
        }
        for (size_t i = 0; i < part.cells.size(); ++i) {
            hold(name, "row", i, part.cells[i], held);
        }
        return held;
    }

  private:
    void hold(const char* name, const char* what, size_t index, int64_t cell, std::vector<bool>& held) const {
        if (cell < 0 || static_cast<size_t>(cell) >= held.size()) {
            fail(name, cat(what, " ", index, ": cell ", cell, " is not below ", held.size()));
        }
        if (held[static_cast<size_t>(cell)]) {
            fail(name, cat(what, " ", index, ": cell ", cell, " is held twice"));
        }
        held[static_cast<size_t>(cell)] = true;
    }

    void check_cold(const char* name, const ColdLayout& cold, size_t n_pages) const {
        if (cold.format.empty()) {
            if (n_pages != 0) {
                fail(name, cat(n_pages, " cold pages but no cold format"));
            }
            if (cold.page_tokens != 0 || cold.block_bytes != 0 || cold.rotation_block != 0) {
                fail(name, "the layout of cold pages without a cold format");
            }
            return;
        }
        if (r_.cache != CacheKind::mixed) {
            fail(name, cat("a standard cache has the cold format ", in_quotes(cold.format)));
        }
        check_range("page_tokens", cold.page_tokens, 1, 64);
        check_range("block_bytes", cold.block_bytes, 1, kMaxDimension);
        check_range("rotation_block", cold.rotation_block, 0, 1 << 20);
    }

    const TraceRecord& r_;
};

}  // namespace

void validate(const TraceRecord& record) {
    Validator(record).check_all();
    validate_views(record);
}

void validate_places(const TraceRecord& record) {
    Validator(record).held_cells("k", record.k);
    Validator(record).held_cells("v", record.v);
}

void validate_dimensions(const TraceRecord& record) { Validator(record).check_numbers(); }

}  // namespace mixed_kv::trace
