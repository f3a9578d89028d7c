#include "kqv-trace-monitor/capture.h"

#include <ggml-backend.h>

#include <algorithm>
#include <array>
#include <bit>
#include <charconv>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

#include "mixed_kv/cold_format.h"
#include "mixed_kv/error.h"

namespace mixed_kv::tools {

using trace::CachePart;
using trace::Shape;
using trace::SourceView;
using trace::TensorData;
using trace::TraceRecord;

namespace {

constexpr int64_t kPageCells = kPageTokens;

// The number after the first `prefix`, as in "Qcur-12 (view)".
std::optional<int32_t> number_after(std::string_view name, std::string_view prefix) {
    const size_t at = name.find(prefix);
    if (at == std::string_view::npos) return std::nullopt;
    const char* first = name.data() + at + prefix.size();
    int32_t number = 0;
    const auto result = std::from_chars(first, name.data() + name.size(), number);
    return result.ec == std::errc() && number >= 0 ? std::optional(number) : std::nullopt;
}

trace::GgmlType trace_type(const ggml_tensor* t) {
    const trace::GgmlTypeInfo* info = trace::find_ggml_type(static_cast<int32_t>(t->type));
    if (info == nullptr) {
        throw Error(std::string("tensor '") + t->name + "' has the type " + ggml_type_name(t->type) +
                    ", which traces do not know");
    }
    return info->type;
}

Shape shape_of(const int64_t (&ne)[GGML_MAX_DIMS]) { return {ne[0], ne[1], ne[2], ne[3]}; }
Shape strides_of(const size_t (&nb)[GGML_MAX_DIMS]) {
    return {int64_t(nb[0]), int64_t(nb[1]), int64_t(nb[2]), int64_t(nb[3])};
}

SourceView view_of(const ggml_tensor* t) {
    SourceView view;
    if (t == nullptr) return view;
    view.present = true;
    view.name = t->name;
    view.type = trace_type(t);
    view.ne = shape_of(t->ne);
    view.nb = strides_of(t->nb);
    view.order = trace::axis_order(view.ne, view.nb);
    if (t->view_src != nullptr) {
        view.view_offs = int64_t(t->view_offs);
        view.origin_name = t->view_src->name;
        view.origin_type = trace_type(t->view_src);
        view.origin_ne = shape_of(t->view_src->ne);
        view.origin_nb = strides_of(t->view_src->nb);
    }
    return view;
}

// The tensor's elements with dimension axes[0] fastest, then axes[1], ...; read through its strides, never as
// if it were contiguous. limit: elements taken of each of the tensor's own dimensions.
TensorData gather(const ggml_tensor* t, const std::array<int, 4>& axes, const Shape& limit) {
    TensorData data;
    data.type = trace_type(t);
    for (size_t i = 0; i < 4; ++i) data.ne[i] = limit[size_t(axes[i])];
    data.bytes.resize(trace::tensor_bytes(data.type, data.ne));
    if (data.bytes.empty()) return data;
    std::vector<std::byte> raw(ggml_nbytes(t));
    ggml_backend_tensor_get(t, raw.data(), 0, raw.size());

    const auto block = size_t(ggml_blck_size(t->type)), size = ggml_type_size(t->type);
    const auto nb = [&](size_t i) { return t->nb[axes[i]]; };
    const bool rows_contiguous = nb(0) == size;
    if (!rows_contiguous && block != 1) {
        throw Error(std::string("tensor '") + t->name +
                    "': blocks of a row lie apart, which is not supported");
    }
    const size_t n_blocks = size_t(data.ne[0]) / block;
    std::byte* out = data.bytes.data();
    for (size_t i3 = 0; i3 < size_t(data.ne[3]); ++i3) {
        for (size_t i2 = 0; i2 < size_t(data.ne[2]); ++i2) {
            for (size_t i1 = 0; i1 < size_t(data.ne[1]); ++i1) {
                const std::byte* row = raw.data() + i1 * nb(1) + i2 * nb(2) + i3 * nb(3);
                if (rows_contiguous) {
                    std::memcpy(out, row, n_blocks * size);
                } else {
                    for (size_t i0 = 0; i0 < n_blocks; ++i0)
                        std::memcpy(out + i0 * size, row + i0 * nb(0), size);
                }
                out += n_blocks * size;
            }
        }
    }
    return data;
}

TensorData gather(const ggml_tensor* t, const std::array<int, 4>& axes) {
    return gather(t, axes, shape_of(t->ne));
}

constexpr std::array<int, 4> kAsIs = {0, 1, 2, 3};
// [dim, tokens or cells, heads, streams] becomes [dim, heads, tokens or cells, streams].
constexpr std::array<int, 4> kHeadsInside = {0, 2, 1, 3};

// llama.cpp's own cache, or a copy of ours that the scheduler made for another device: every cell's row.
CachePart standard_part(const ggml_tensor* t) {
    CachePart part;
    part.rows = gather(t, kHeadsInside);
    const int64_t n_cells = part.rows.ne[2] * part.rows.ne[3];
    part.rows.ne[2] = n_cells;
    part.rows.ne[3] = 1;
    for (int64_t cell = 0; cell < n_cells; ++cell) part.cells.push_back(int32_t(cell));
    return part;
}

// One side of the mixed cache, page by page as stored.
class MixedPart {
  public:
    MixedPart(const ggml_tensor* t, const mixed_kv_api& api, const mixed_kv_tensor_info& info)
        : head_dim_(t->ne[0]),
          n_kv_(t->ne[1]),
          n_head_(t->ne[2]),
          row_bytes_(size_t(head_dim_ * n_head_) * 2),
          is_value_(info.is_value != 0) {
        part_.cold = cold_layout(info);
        formats_ = trace::cold_formats_of(part_.cold);
        part_.rows = {trace::GgmlType::f16, {head_dim_, n_head_, 0, 1}, {}};
        part_.codes = {trace::GgmlType::i8, {part_.cold.block_bytes, n_head_, 0, 1}, {}};
        for (int64_t stream = 0; stream < t->ne[3]; ++stream) {
            for (int64_t first = 0; first < n_kv_; first += kPageCells) {
                mixed_kv_page page;
                if (api.page(t, stream, first / kPageCells, &page) == 0) {
                    throw Error(std::string("the plugin does not show page ") +
                                std::to_string(first / kPageCells) + " of '" + info.name + "'");
                }
                if (page.state == MIXED_KV_CELL_COLD && !is_plain(page)) {
                    add_decoded(t, page, stream, first);
                } else {
                    add(page, stream * n_kv_ + first, std::min(kPageCells, n_kv_ - first));
                }
            }
        }
        part_.rows.ne[2] = int64_t(part_.cells.size());
        part_.codes.ne[2] = int64_t(part_.pages.size());
    }

    CachePart take() { return std::move(part_); }

  private:
    trace::ColdLayout cold_layout(const mixed_kv_tensor_info& info) const {
        trace::ColdLayout cold;
        if (find_cold_format(info.format) == nullptr) return cold;  // "f16": never cold
        cold.format = info.ladder[0] != 0 ? info.ladder : info.format;
        cold.page_tokens = kPageCells;
        cold.block_bytes = int64_t(info.block_bytes);
        cold.rotation_block = info.is_value != 0 ? hadamard_size(int(head_dim_)) : 1;
        return cold;
    }

    void add(const mixed_kv_page& page, int64_t first_cell, int64_t n_cells) {
        const auto* data = static_cast<const std::byte*>(page.data);
        const size_t head_bytes = size_t(head_dim_) * 2;
        switch (page.state) {
            case MIXED_KV_CELL_HOT:  // [n_head][64][head_dim]
                for (int64_t t = 0; t < n_cells; ++t) {
                    if ((page.written >> t & 1) == 0) continue;
                    std::byte* row = add_row(first_cell + t);
                    for (int64_t h = 0; h < n_head_; ++h) {
                        std::memcpy(row + size_t(h) * head_bytes,
                                    data + size_t(h * kPageCells + t) * head_bytes, head_bytes);
                    }
                }
                break;
            case MIXED_KV_CELL_PINNED:  // [64][n_head][head_dim], rows that were never written are zero
                for (int64_t t = 0; t < n_cells; ++t) {
                    std::memcpy(add_row(first_cell + t), data + size_t(t) * row_bytes_, row_bytes_);
                }
                break;
            case MIXED_KV_CELL_COLD:
                add_cold(page, first_cell, n_cells);
                break;
            default:
                break;
        }
    }

    // What the trace has a place for: blocks of the layer's formats, without a K-shift to apply.
    bool is_plain(const mixed_kv_page& page) const {
        return page.shift_pending == 0 &&
               std::all_of(page.blocks, page.blocks + page.n_blocks,
                           [this](const mixed_kv_block& block) { return format_of(block) >= 0; });
    }

    // Index in the layer's formats; -1: none of them.
    int64_t format_of(const mixed_kv_block& block) const {
        const auto at = std::find(formats_.begin(), formats_.end(), "q" + std::to_string(block.code_bits));
        return at == formats_.end() ? -1 : at - formats_.begin();
    }

    void add_cold(const mixed_kv_page& page, int64_t first_cell, int64_t n_cells) {
        const uint64_t in_view = n_cells < kPageCells ? (uint64_t{1} << n_cells) - 1 : ~uint64_t{0};
        for (int i = 0; i < page.n_blocks; ++i) {
            const mixed_kv_block& block = page.blocks[i];
            const uint64_t held = block.cells & in_view;
            if (held == 0) continue;
            const int64_t format = format_of(block);
            part_.pages.push_back({first_cell, held, block.rotation, format});
            const auto* data = static_cast<const std::byte*>(block.data);
            const auto head_bytes =
                std::ptrdiff_t(find_cold_format(formats_[size_t(format)])
                                   ->block_bytes(is_value_ ? KvRole::value : KvRole::key, int(head_dim_)));
            for (int64_t head = 0; head < n_head_; ++head) {
                const size_t end = part_.codes.bytes.size() + size_t(part_.cold.block_bytes);
                part_.codes.bytes.insert(part_.codes.bytes.end(), data + head * head_bytes,
                                         data + (head + 1) * head_bytes);
                part_.codes.bytes.resize(end);
            }
        }
        const auto* overlay = static_cast<const std::byte*>(page.overlay_rows);
        for (int64_t t = 0; t < kPageCells; ++t) {
            if ((page.overlay >> t & 1) == 0) continue;
            if (t < n_cells) std::memcpy(add_row(first_cell + t), overlay, row_bytes_);
            overlay += row_bytes_;
        }
    }

    // Any other cold page: its rows as they read.
    void add_decoded(const ggml_tensor* t, const mixed_kv_page& page, int64_t stream, int64_t first) {
        for (int64_t i = 0; i < std::min(kPageCells, n_kv_ - first); ++i) {
            if ((page.written >> i & 1) == 0) continue;
            ggml_backend_tensor_get(t, add_row(stream * n_kv_ + first + i),
                                    size_t(stream) * t->nb[3] + size_t(first + i) * t->nb[1], row_bytes_);
        }
    }

    // Room for one row of all heads.
    std::byte* add_row(int64_t cell) {
        part_.cells.push_back(int32_t(cell));
        const size_t at = part_.rows.bytes.size();
        part_.rows.bytes.resize(at + row_bytes_);
        return part_.rows.bytes.data() + at;
    }

    int64_t head_dim_, n_kv_, n_head_;
    size_t row_bytes_;
    bool is_value_;
    std::vector<std::string> formats_;
    CachePart part_;
};

// The plugin's view of a cache tensor, if it holds it in pages.
std::optional<mixed_kv_tensor_info> paged_info(const ggml_tensor* t, const mixed_kv_api* api) {
    mixed_kv_tensor_info info;
    mixed_kv_page page;
    if (api == nullptr || t->type != GGML_TYPE_F16 || api->tensor_info(t, &info) == 0 ||
        api->page(t, 0, 0, &page) == 0) {
        return std::nullopt;
    }
    return info;
}

void capture_sources(const ggml_tensor* node, const mixed_kv_api* api, TraceRecord& record) {
    const ggml_tensor *q = node->src[0], *k = node->src[1], *v = node->src[2], *mask = node->src[3],
                      *sinks = node->src[4];
    record.q = gather(q, kHeadsInside);
    const std::optional<mixed_kv_tensor_info> k_info = paged_info(k, api), v_info = paged_info(v, api);
    // MLA: V is the first values of K's rows.
    record.v_is_view_of_k = v->data == k->data && v->ne[1] == k->ne[1] && v->nb[1] == k->nb[1];
    if (k_info && v_info) {
        record.cache = trace::CacheKind::mixed;
        record.k = MixedPart(k, *api, *k_info).take();
        if (!record.v_is_view_of_k) record.v = MixedPart(v, *api, *v_info).take();
    } else {
        record.k = standard_part(k);
        if (!record.v_is_view_of_k) record.v = standard_part(v);
    }
    if (mask != nullptr) {
        Shape limit = shape_of(mask->ne);
        limit[0] = std::min(limit[0], record.n_kv);
        record.mask = gather(mask, kAsIs, limit);
    }
    if (sinks != nullptr) {
        record.sinks = gather(sinks, kAsIs);
        record.sinks->ne = {ggml_nelements(sinks), 1, 1, 1};
    }
    record.q_view = view_of(q);
    record.k_view = view_of(k);
    record.v_view = view_of(v);
    record.mask_view = view_of(mask);
    record.sinks_view = view_of(sinks);
}

}  // namespace

std::optional<LayerGuess> guess_layer(const ggml_tensor* node) {
    // The query's own name, its origin's, and those of what it was computed from (a rotation, a scale).
    const ggml_tensor* t = node->src[0];
    for (int depth = 0; t != nullptr && depth < 8; ++depth) {
        if (const auto layer = number_after(t->name, "Qcur-")) return LayerGuess{*layer, true};
        if (t->view_src != nullptr) {
            if (const auto layer = number_after(t->view_src->name, "Qcur-")) return LayerGuess{*layer, true};
        }
        t = t->src[0];
    }
    for (const ggml_tensor* cache = node->src[1]; cache != nullptr; cache = cache->view_src) {
        if (const auto layer = number_after(cache->name, "cache_k_l")) return LayerGuess{*layer, false};
    }
    return std::nullopt;
}

std::optional<int32_t> output_layer(const ggml_tensor* node) {
    return std::string_view(node->name).starts_with("kqv_out-") ? number_after(node->name, "kqv_out-")
                                                                : std::nullopt;
}

TraceRecord capture_attention(const ggml_tensor* node, const mixed_kv_api* api, Sources sources) {
    const ggml_tensor *q = node->src[0], *k = node->src[1], *v = node->src[2];
    if (k->ne[2] != v->ne[2]) throw Error("K and V have different numbers of heads, which is not supported");
    TraceRecord record;
    record.has_sources = sources == Sources::record;
    record.n_tokens = q->ne[1];
    record.n_head = q->ne[2];
    record.n_head_kv = k->ne[2];
    record.n_kv = k->ne[1];
    record.n_stream = q->ne[3];
    record.head_dim_k = k->ne[0];
    record.head_dim_v = v->ne[0];
    float scalars[3];  // as ggml_flash_attn_ext() stores them
    std::memcpy(scalars, node->op_params, sizeof scalars);
    record.kq_scale = scalars[0];
    record.max_bias = scalars[1];
    record.logit_softcap = scalars[2];
    record.kqv_out = gather(node, kAsIs);
    record.kqv_out_view = view_of(node);
    if (record.has_sources) capture_sources(node, api, record);
    return record;
}

}  // namespace mixed_kv::tools
