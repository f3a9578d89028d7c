#include "trace/written_rows.h"

#include <charconv>
#include <cstring>
#include <string_view>

#include "mixed_kv/error.h"
#include "trace/text.h"

namespace mixed_kv::trace {

namespace {

// Whose cache a record reads: the layer of "cache_k_l3" where its view of K names one, else its own.
int32_t layer_of_cache(const TraceRecord& record) {
    constexpr std::string_view kPrefix = "cache_k_l";
    const std::string_view name = record.k_view.origin_name;
    if (!name.starts_with(kPrefix)) return record.layer;
    int32_t layer = 0;
    const auto result = std::from_chars(name.data() + kPrefix.size(), name.data() + name.size(), layer);
    return result.ec == std::errc() && layer >= 0 ? layer : record.layer;
}

}  // namespace

OriginalRows::OriginalRows(const TraceReader& reader) : reader_(reader) {
    for (const RecordId id : reader.records()) {
        if (reader.gguf().find_tensor(tensor_name("written_sums", id.layer, id.step))) {
            steps_[id.layer].push_back(id.step);
        }
    }
}

void OriginalRows::read_on(int32_t layer, int32_t step) {
    const std::vector<int32_t>& steps = steps_.at(layer);
    Layer& known = layers_[layer];
    if (known.n_read > 0 && steps[known.n_read - 1] > step) known = {};  // a step before: from the start
    for (; known.n_read < steps.size() && steps[known.n_read] <= step; ++known.n_read) {
        const auto [k, v] = reader_.load_written({layer, steps[known.n_read]});
        for (const auto& [written, of_side] : {std::pair(&k, &known.k), std::pair(&v, &known.v)}) {
            const size_t n = written->cells.size() / 2,
                         row_bytes = n > 0 ? written->rows.bytes.size() / n : 0;
            if (n > 0 && (written->rows.type != GgmlType::f16 || int64_t(n) != written->rows.ne[2])) {
                throw Error(cat("layer ", layer, ", step ", steps[known.n_read],
                                ": its rows as they were written do not fit their list of cells"));
            }
            for (size_t i = 0; i < n; ++i) {
                std::vector<uint16_t>& row = (*of_side)[{written->cells[2 * i], written->cells[2 * i + 1]}];
                row.resize(row_bytes / sizeof(uint16_t));
                std::memcpy(row.data(), written->rows.bytes.data() + i * row_bytes, row_bytes);
            }
        }
    }
}

OriginalRows::Rows OriginalRows::rows(const TraceRecord& record, bool is_value) {
    Rows found;
    const int32_t layer = layer_of_cache(record);
    if (!steps_.contains(layer)) return found;
    read_on(layer, record.step);
    const Layer& known = layers_.at(layer);
    const bool from_k = is_value && record.v_is_view_of_k;  // the first values of K's rows
    const int64_t kept_dim = is_value && !from_k ? record.head_dim_v : record.head_dim_k;
    const int64_t head_dim = is_value ? record.head_dim_v : record.head_dim_k;
    const int64_t heads = record.n_head_kv, n_cells = record.n_kv * record.n_stream;
    found.values.assign(size_t(n_cells * heads * head_dim), 0);
    found.known.assign(size_t(n_cells), 0);
    for (const auto& [at, row] : is_value && !from_k ? known.v : known.k) {
        const auto [stream, index] = at;
        if (stream >= record.n_stream || index >= record.n_kv || int64_t(row.size()) != heads * kept_dim) {
            continue;  // outside the view, or another layer's shape
        }
        const int64_t cell = stream * record.n_kv + index;
        for (int64_t head = 0; head < heads; ++head) {
            std::memcpy(found.values.data() + (cell * heads + head) * head_dim, row.data() + head * kept_dim,
                        size_t(head_dim) * sizeof(uint16_t));
        }
        found.known[size_t(cell)] = 1;
    }
    return found;
}

}  // namespace mixed_kv::trace
