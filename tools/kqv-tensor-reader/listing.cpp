#include "kqv-tensor-reader/listing.h"

#include <cstdio>
#include <vector>

#include "kqv-tensor-reader/trace_values.h"

namespace mixed_kv::trace_tools {

using trace::CachePart;
using trace::Shape;
using trace::SourceView;
using trace::TensorData;
using trace::TraceRecord;

namespace {

template <typename... Arguments>
std::string format(const char* pattern, Arguments... arguments) {
    char text[512];
    std::snprintf(text, sizeof text, pattern, arguments...);
    return text;
}

std::string list(const Shape& numbers) {
    std::string text = "(";
    for (size_t i = 0; i < numbers.size(); ++i) text += (i > 0 ? ", " : "") + std::to_string(numbers[i]);
    return text + ")";
}

// C order, slowest first; every dimension that `names` names.
std::string c_order(const Shape& ne, int n_dims) {
    std::string text;
    for (int i = n_dims - 1; i >= 0; --i) text += "[" + std::to_string(ne[size_t(i)]) + "]";
    return text;
}

struct Entry {
    const char* name;
    const TensorData* tensor;  // null: absent
    int n_dims;
    const char* meaning;  // C order
    const SourceView* view;
};

std::vector<Entry> entries(const TraceRecord& r) {
    static const TensorData nothing{trace::GgmlType::i8, {0, 0, 0, 1}, {}};
    std::vector<Entry> all = {
        {"kqv_out", &r.kqv_out, 4, "[n_stream][n_tokens][n_head][head_dim_v]", &r.kqv_out_view}};
    if (!r.has_sources) return all;
    const bool mixed = r.cache == trace::CacheKind::mixed;
    const auto codes = [](const CachePart& part) {
        return part.cold.format.empty() ? &nothing : &part.codes;
    };
    all.push_back({"q", &r.q, 4, "[n_stream][n_tokens][n_head][head_dim_k]", &r.q_view});
    all.push_back({"k", &r.k.rows, 3, "[n_rows][n_head_kv][head_dim_k]", &r.k_view});
    all.push_back(
        {"v", r.v_is_view_of_k ? &nothing : &r.v.rows, 3, "[n_rows][n_head_kv][head_dim_v]", &r.v_view});
    if (mixed) {
        all.push_back({"k_quant", codes(r.k), 3, "[n_pages][n_head_kv][block_bytes]", nullptr});
        all.push_back({"v_quant", codes(r.v), 3, "[n_pages][n_head_kv][block_bytes]", nullptr});
    }
    if (r.mask)
        all.push_back({"mask", &*r.mask, 4, "[n_stream or 1][n_head or 1][n_tokens][n_kv]", &r.mask_view});
    if (r.sinks) all.push_back({"sinks", &*r.sinks, 1, "[n_head]", &r.sinks_view});
    return all;
}

bool is_empty(const TensorData& tensor) {
    for (const int64_t n : tensor.ne) {
        if (n == 0) return true;
    }
    return false;
}

// Numbers to describe a tensor by: its values, for codes the decoded ones of their cells.
std::vector<float> values_of(const TraceRecord& record, const std::string& name, const TensorData& tensor) {
    if (name == "k_quant" || name == "v_quant") {
        const Side side = name == "k_quant" ? Side::k : Side::v;
        const CachePart& part = side == Side::k ? record.k : record.v;
        const int64_t row = record.n_head_kv * (side == Side::k ? record.head_dim_k : record.head_dim_v);
        const DensePart dense = dense_part(record, side);
        const std::vector<trace::CellPlace> places = trace::locate_cells(record, part);
        std::vector<float> values;
        for (size_t cell = 0; cell < places.size(); ++cell) {
            if (places[cell].where != trace::CellPlace::Where::page) continue;
            const double* first = dense.values.data() + int64_t(cell) * row;
            values.insert(values.end(), first, first + row);
        }
        return values;
    }
    return is_convertible(tensor.type) ? to_floats(tensor) : std::vector<float>();
}

std::string view_text(const SourceView& view) {
    if (!view.present) return "";
    std::string text = "ne " + list(view.ne) + ", nb " + list(view.nb) + ", order " + list(view.order);
    if (!view.origin_name.empty()) {
        text += ", a view of '" + view.origin_name + "' " + trace::ggml_type_info(view.origin_type).name +
                " ne " + list(view.origin_ne) + " at byte " + std::to_string(view.view_offs);
    }
    return text;
}

nlohmann::ordered_json view_json(const SourceView& view) {
    nlohmann::ordered_json json = {{"name", view.name},
                                   {"type", trace::ggml_type_info(view.type).name},
                                   {"ne", view.ne},
                                   {"nb", view.nb},
                                   {"order", view.order}};
    if (!view.origin_name.empty()) {
        json["origin"] = {{"name", view.origin_name},
                          {"type", trace::ggml_type_info(view.origin_type).name},
                          {"ne", view.origin_ne},
                          {"nb", view.origin_nb},
                          {"offset", view.view_offs}};
    }
    return json;
}

// Where K's or V's cells are.
nlohmann::ordered_json storage_json(const CachePart& part) {
    nlohmann::ordered_json json;
    json["exact_rows"] = part.cells.size();
    if (part.cold.format.empty()) return json;
    json["cold_pages"] = part.pages.size();
    json["page_tokens"] = part.cold.page_tokens;
    json["format"] = part.cold.format;
    json["block_bytes"] = part.cold.block_bytes;
    json["rotation_block"] = part.cold.rotation_block;
    return json;
}

}  // namespace

std::string size_text(double bytes) {
    constexpr const char* kUnits[] = {"bytes", "KiB", "MiB", "GiB", "TiB"};
    int unit = 0;
    for (; bytes >= 1024 && unit < 4; ++unit) bytes /= 1024;
    return format(unit == 0 ? "%.0f %s" : "%.1f %s", bytes, kUnits[unit]);
}

std::string describe_tensors(const TraceRecord& record) {
    std::string text =
        place_text(record.layer, record.step) + " (" +
        (record.cache == trace::CacheKind::mixed ? "mixed" : "standard") + " cache): " +
        format("n_tokens %lld from position %lld, n_head %lld, n_head_kv %lld, n_kv %lld, n_stream %lld, ",
               (long long)record.n_tokens, (long long)record.position, (long long)record.n_head,
               (long long)record.n_head_kv, (long long)record.n_kv, (long long)record.n_stream) +
        format("kq_scale %g, max_bias %g, logit_softcap %g", double(record.kq_scale), double(record.max_bias),
               double(record.logit_softcap)) +
        (record.v_is_view_of_k ? ", V is a view of K" : "") + "\n";
    for (const Entry& entry : entries(record)) {
        text += format("  %-8s %-6s %-22s %s\n", entry.name, trace::ggml_type_info(entry.tensor->type).name,
                       is_empty(*entry.tensor) ? "empty" : c_order(entry.tensor->ne, entry.n_dims).c_str(),
                       entry.meaning);
        if (entry.view != nullptr && entry.view->present) {
            text += std::string("           as the op saw it: ") + view_text(*entry.view) + "\n";
        }
    }
    for (const Side side : {Side::k, Side::v}) {
        const CachePart& part = side == Side::k ? record.k : record.v;
        if (part.cold.format.empty()) continue;
        text += format("  %s: %zu exact rows; %zu cold pages of %lld cells, format %s, %lld bytes a head, ",
                       side == Side::k ? "K" : "V", part.cells.size(), part.pages.size(),
                       (long long)part.cold.page_tokens, part.cold.format.c_str(),
                       (long long)part.cold.block_bytes) +
                (part.cold.rotation_block > 1
                     ? "Hadamard-rotated in groups of " + std::to_string(part.cold.rotation_block) + "\n"
                     : "not rotated\n");
    }
    return text;
}

nlohmann::ordered_json tensors_json(const TraceRecord& record) {
    nlohmann::ordered_json json = {{"layer", record.layer},
                                   {"step", record.step},
                                   {"cache", record.cache == trace::CacheKind::mixed ? "mixed" : "standard"},
                                   {"n_tokens", record.n_tokens},
                                   {"position", record.position},
                                   {"n_head", record.n_head},
                                   {"n_head_kv", record.n_head_kv},
                                   {"n_kv", record.n_kv},
                                   {"n_stream", record.n_stream},
                                   {"kq_scale", record.kq_scale},
                                   {"max_bias", record.max_bias},
                                   {"logit_softcap", record.logit_softcap},
                                   {"v_is_view_of_k", record.v_is_view_of_k},
                                   {"tensors", nlohmann::ordered_json::array()}};
    for (const Entry& entry : entries(record)) {
        nlohmann::ordered_json tensor = {{"name", entry.name},
                                         {"type", trace::ggml_type_info(entry.tensor->type).name},
                                         {"shape", nlohmann::ordered_json::array()},
                                         {"axes", entry.meaning}};
        for (int i = entry.n_dims - 1; i >= 0; --i) tensor["shape"].push_back(entry.tensor->ne[size_t(i)]);
        if (entry.view != nullptr && entry.view->present) tensor["view"] = view_json(*entry.view);
        json["tensors"].push_back(std::move(tensor));
    }
    if (record.has_sources) {
        json["k"] = storage_json(record.k);
        if (!record.v_is_view_of_k) json["v"] = storage_json(record.v);
    }
    return json;
}

std::string statistics_table(const TraceRecord& record) {
    std::string text = format("  %-8s %-6s %-20s %-26s %11s %11s %11s %11s\n", "tensor", "type", "shape",
                              "strides", "mean", "std", "min", "max");
    for (const Entry& entry : entries(record)) {
        const char* type = trace::ggml_type_info(entry.tensor->type).name;
        if (is_empty(*entry.tensor)) {
            text += format("  %-8s %-6s empty\n", entry.name, type);
            continue;
        }
        const Shape nb = entry.view != nullptr && entry.view->present
                             ? entry.view->nb
                             : trace::contiguous_strides(entry.tensor->type, entry.tensor->ne);
        text += format("  %-8s %-6s %-20s %-26s", entry.name, type,
                       c_order(entry.tensor->ne, entry.n_dims).c_str(), list(nb).c_str());
        std::vector<float> values = values_of(record, entry.name, *entry.tensor);
        if (std::string(entry.name) == "mask") {  // -inf would be all there is to see
            std::erase_if(values, [](float value) { return value < -3e38F; });
        }
        const Statistics s = statistics(values);
        text +=
            s.n > 0 ? format(" %11.4g %11.4g %11.4g %11.4g\n", s.mean, s.std, s.min, s.max) : " no values\n";
    }
    return text;
}

}  // namespace mixed_kv::trace_tools
