#include "trace/trace_meta.h"

#include <algorithm>

#include "mixed_kv/error.h"
#include "trace/text.h"

namespace mixed_kv::trace {
namespace {

using Intern = std::function<int64_t(std::string_view)>;

void put_shape(std::vector<int64_t>& out, size_t at, const Shape& shape) {
    std::copy(shape.begin(), shape.end(), out.begin() + static_cast<std::ptrdiff_t>(at));
}

void put_view(std::vector<int64_t>& out, meta::View which, const SourceView& view, StoredAt stored,
              const Intern& intern) {
    const size_t base = meta::views + which * meta::kViewFields;
    out[base + meta::view_stored_layer] = stored.layer;
    out[base + meta::view_stored_step] = stored.step;
    out[base + meta::view_name] = -1;
    out[base + meta::view_origin] = -1;
    if (!view.present) {
        return;
    }
    out[base + meta::view_present] = 1;
    out[base + meta::view_type] = static_cast<int64_t>(view.type);
    put_shape(out, base + meta::view_ne, view.ne);
    put_shape(out, base + meta::view_nb, view.nb);
    put_shape(out, base + meta::view_order, view.order);
    out[base + meta::view_offs] = view.view_offs;
    out[base + meta::view_name] = intern(view.name);
    if (!view.origin_name.empty()) {
        out[base + meta::view_origin] = intern(view.origin_name);
        out[base + meta::view_origin_type] = static_cast<int64_t>(view.origin_type);
        put_shape(out, base + meta::view_origin_ne, view.origin_ne);
        put_shape(out, base + meta::view_origin_nb, view.origin_nb);
    }
}

void put_cold(std::vector<int64_t>& out, size_t base, const ColdLayout& cold, int64_t n_pages, int64_t n_rows,
              const Intern& intern) {
    out[base + meta::cold_format] = cold.format.empty() ? -1 : intern(cold.format);
    out[base + meta::cold_page_tokens] = cold.page_tokens;
    out[base + meta::cold_block_bytes] = cold.block_bytes;
    out[base + meta::cold_rotation] = cold.rotation_block;
    out[base + meta::cold_n_pages] = n_pages;
    out[base + meta::cold_n_rows] = n_rows;
}

class Decoder {
  public:
    Decoder(std::span<const int64_t> fields, std::span<const std::string> strings)
        : fields_(fields), strings_(strings) {}

    int64_t at(size_t field) const { return fields_[field]; }

    int64_t at(size_t field, int64_t low, int64_t high) const {
        const int64_t value = fields_[field];
        if (value < low || value > high) {
            throw Error(cat("meta field ", field, " is ", value, ", not between ", low, " and ", high));
        }
        return value;
    }

    std::string text(size_t field) const {
        const int64_t index = at(field, -1, static_cast<int64_t>(strings_.size()) - 1);
        return index < 0 ? std::string() : strings_[static_cast<size_t>(index)];
    }

    Shape shape(size_t field) const {
        return {fields_[field], fields_[field + 1], fields_[field + 2], fields_[field + 3]};
    }

    GgmlType type(size_t field) const {
        const GgmlTypeInfo* info = find_ggml_type(static_cast<int32_t>(at(field, 0, INT32_MAX)));
        if (info == nullptr) {
            throw Error(cat("meta field ", field, ": unknown ggml type ", at(field)));
        }
        return info->type;
    }

    StoredAt stored(size_t field) const { return {at(field, -1, INT32_MAX), at(field + 1, -1, INT32_MAX)}; }

    void view(meta::View which, SourceView& view) const {
        const size_t base = meta::views + which * meta::kViewFields;
        view.present = at(base + meta::view_present, 0, 1) == 1;
        if (!view.present) {
            return;
        }
        view.name = text(base + meta::view_name);
        view.type = type(base + meta::view_type);
        view.ne = shape(base + meta::view_ne);
        view.nb = shape(base + meta::view_nb);
        view.order = shape(base + meta::view_order);
        view.view_offs = at(base + meta::view_offs);
        view.origin_name = text(base + meta::view_origin);
        if (!view.origin_name.empty()) {
            view.origin_type = type(base + meta::view_origin_type);
            view.origin_ne = shape(base + meta::view_origin_ne);
            view.origin_nb = shape(base + meta::view_origin_nb);
        }
    }

    void cold(size_t base, ColdLayout& cold, int64_t& n_pages, int64_t& n_rows) const {
        cold.format = text(base + meta::cold_format);
        cold.page_tokens = at(base + meta::cold_page_tokens);
        cold.block_bytes = at(base + meta::cold_block_bytes);
        cold.rotation_block = at(base + meta::cold_rotation);
        n_pages = at(base + meta::cold_n_pages, 0, INT32_MAX);
        n_rows = at(base + meta::cold_n_rows, 0, INT32_MAX);
    }

  private:
    std::span<const int64_t> fields_;
    std::span<const std::string> strings_;
};

}  // namespace

std::vector<int64_t> encode_meta(const TraceRecord& record, const RecordStorage& storage,
                                 const Intern& intern) {
    std::vector<int64_t> out(meta::kFields, 0);
    out[meta::schema] = kTraceSchemaVersion;
    out[meta::layer] = record.layer;
    out[meta::step] = record.step;
    out[meta::cache] = static_cast<int64_t>(record.cache);
    out[meta::form] = static_cast<int64_t>(storage.form);
    const auto flag = [](bool set, meta::Flag value) { return set ? static_cast<int64_t>(value) : 0; };
    out[meta::flags] = flag(record.v_is_view_of_k, meta::flag_v_is_view_of_k) +
                       flag(!record.has_sources, meta::flag_no_sources) +
                       flag(record.keeps_written, meta::flag_keeps_written);
    out[meta::n_tokens] = record.n_tokens;
    out[meta::n_head] = record.n_head;
    out[meta::n_head_kv] = record.n_head_kv;
    out[meta::n_kv] = record.n_kv;
    out[meta::n_stream] = record.n_stream;
    out[meta::head_dim_k] = record.head_dim_k;
    out[meta::head_dim_v] = record.head_dim_v;
    out[meta::position] = record.position;
    put_cold(out, meta::k_cold, record.k.cold, storage.k_pages, storage.k_rows, intern);
    put_cold(out, meta::v_cold, record.v.cold, storage.v_pages, storage.v_rows, intern);
    const StoredAt here{record.layer, record.step};
    put_view(out, meta::view_kqv_out, record.kqv_out_view, here, intern);
    put_view(out, meta::view_q, record.q_view, record.has_sources ? here : StoredAt{}, intern);
    put_view(out, meta::view_k, record.k_view, {}, intern);
    put_view(out, meta::view_v, record.v_view, {}, intern);
    put_view(out, meta::view_mask, record.mask_view, storage.mask, intern);
    put_view(out, meta::view_sinks, record.sinks_view, storage.sinks, intern);
    return out;
}

std::vector<float> encode_scalars(const TraceRecord& record) {
    std::vector<float> out(kScalarFields);
    out[scalar_kq_scale] = record.kq_scale;
    out[scalar_max_bias] = record.max_bias;
    out[scalar_logit_softcap] = record.logit_softcap;
    return out;
}

void decode_meta(std::span<const int64_t> meta, std::span<const float> scalars,
                 std::span<const std::string> strings, TraceRecord& record, RecordStorage& storage) {
    if (meta.size() != meta::kFields || scalars.size() != kScalarFields) {
        throw Error(cat("meta has ", meta.size(), " fields and scalars ", scalars.size(), ", expected ",
                        size_t{meta::kFields}, " and ", size_t{kScalarFields}));
    }
    const Decoder in(meta, strings);
    if (in.at(meta::schema) != kTraceSchemaVersion) {
        throw Error(
            cat("trace schema ", in.at(meta::schema), " is not supported, only ", kTraceSchemaVersion));
    }
    record.layer = static_cast<int32_t>(in.at(meta::layer, 0, INT32_MAX));
    record.step = static_cast<int32_t>(in.at(meta::step, 0, INT32_MAX));
    record.cache = static_cast<CacheKind>(in.at(meta::cache, 0, 1));
    storage.form = static_cast<TraceForm>(in.at(meta::form, 0, 1));
    const int64_t flags = in.at(meta::flags);
    record.v_is_view_of_k = (flags & meta::flag_v_is_view_of_k) != 0;
    record.has_sources = (flags & meta::flag_no_sources) == 0;
    record.keeps_written = (flags & meta::flag_keeps_written) != 0;
    record.n_tokens = in.at(meta::n_tokens);
    record.n_head = in.at(meta::n_head);
    record.n_head_kv = in.at(meta::n_head_kv);
    record.n_kv = in.at(meta::n_kv);
    record.n_stream = in.at(meta::n_stream);
    record.head_dim_k = in.at(meta::head_dim_k);
    record.head_dim_v = in.at(meta::head_dim_v);
    record.position = in.at(meta::position);
    in.cold(meta::k_cold, record.k.cold, storage.k_pages, storage.k_rows);
    in.cold(meta::v_cold, record.v.cold, storage.v_pages, storage.v_rows);
    in.view(meta::view_kqv_out, record.kqv_out_view);
    in.view(meta::view_q, record.q_view);
    in.view(meta::view_k, record.k_view);
    in.view(meta::view_v, record.v_view);
    in.view(meta::view_mask, record.mask_view);
    in.view(meta::view_sinks, record.sinks_view);
    storage.mask = in.stored(meta::views + meta::view_mask * meta::kViewFields + meta::view_stored_layer);
    storage.sinks = in.stored(meta::views + meta::view_sinks * meta::kViewFields + meta::view_stored_layer);
    record.kq_scale = scalars[scalar_kq_scale];
    record.max_bias = scalars[scalar_max_bias];
    record.logit_softcap = scalars[scalar_logit_softcap];
}

void check_meta(std::span<const int64_t> meta, std::span<const std::string> strings,
                const TraceRecord& record, const RecordStorage& storage) {
    const std::vector<int64_t> right =
        encode_meta(record, storage, [strings](std::string_view text) -> int64_t {
            return std::find(strings.begin(), strings.end(), text) - strings.begin();
        });
    for (size_t i = 0; i < right.size(); ++i) {
        if (meta[i] != right[i]) {
            throw Error(cat("meta field ", i, " is ", meta[i], ", the others say ", right[i]));
        }
    }
}

}  // namespace mixed_kv::trace
