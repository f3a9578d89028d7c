#include "kqv-tensor-reader/html/record_detail.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "kqv-tensor-reader/html/cell_map.h"
#include "kqv-tensor-reader/html/misreadings.h"
#include "kqv-tensor-reader/html/weights.h"
#include "mixed_kv/cold_format.h"

namespace mixed_kv::trace_tools {

using nlohmann::ordered_json;
using tools::Bundle;
using trace::SourceView;
using trace::TraceRecord;

namespace {

constexpr int64_t kMaxCells = 1 << 18;    // shown one by one
constexpr int64_t kMaxBins = 2048;        // of a head's weights
constexpr int64_t kMaxQueries = 3;        // whose weights are kept
constexpr int64_t kMaxWeights = 1 << 20;  // bins of all heads of a record's queries
constexpr int64_t kMaxRows = 256;         // of errors by query
constexpr int64_t kSampledCells = 32;     // whose values are kept
constexpr int64_t kMaxValues = 1 << 18;   // of samples and statistics

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// 12 of 23 bits of the fraction: four digits, and packs to half.
float shortened(double value) {
    const auto single = float(value);
    if (!std::isfinite(single)) return single;
    return std::bit_cast<float>((std::bit_cast<uint32_t>(single) + 0x400U) & 0xfffff800U);
}

// A weight in 8 bits, by its logarithm: 0 is 0, 1 is 2^-24 and less, 255 is 1; neighbours are 6.8 % apart.
uint8_t weight_code(double weight) {
    if (!(weight > 0)) return std::isnan(weight) ? 255 : 0;
    return uint8_t(std::clamp(std::lround(255 + std::log2(weight) * (254.0 / 24)), 1L, 255L));
}

ordered_json view_json(const char* source, const SourceView& view) {
    if (!view.present) return {{"source", source}, {"present", false}};
    ordered_json json = {{"source", source},
                         {"present", true},
                         {"name", view.name},
                         {"type", trace::ggml_type_info(view.type).name},
                         {"block_bytes", trace::ggml_type_info(view.type).block_bytes},
                         {"block_values", trace::ggml_type_info(view.type).block_values},
                         {"ne", view.ne},
                         {"nb", view.nb},
                         {"order", view.order},
                         {"offset", view.view_offs},
                         {"contiguous", is_contiguous(view)}};
    if (!view.origin_name.empty()) {
        json["origin"] = {{"name", view.origin_name},
                          {"type", trace::ggml_type_info(view.origin_type).name},
                          {"ne", view.origin_ne},
                          {"nb", view.origin_nb}};
    }
    return json;
}

ordered_json views_json(const TraceRecord& r) {
    return {view_json("q", r.q_view),         view_json("k", r.k_view),
            view_json("v", r.v_view),         view_json("mask", r.mask_view),
            view_json("sinks", r.sinks_view), view_json("kqv_out", r.kqv_out_view)};
}

void add_side(const TraceRecord& record, Side side, const std::string& name, const Originals& originals,
              Bundle& bundle) {
    const trace::CachePart& part = side == Side::k || record.v_is_view_of_k ? record.k : record.v;
    CellMap map = map_cells(record, side);
    ordered_json pages = ordered_json::array();
    for (const MappedPage& page : map.pages) {
        if (page.first_cell + page.n_cells > kMaxCells) break;
        ordered_json parts = ordered_json::array();
        for (const PagePart& p : page.parts) parts.push_back({p.kind, p.format, p.n_cells, p.bytes});
        pages.push_back({page.first_cell, page.n_cells, std::move(parts)});
    }
    map.parts.resize(size_t(std::min<int64_t>(int64_t(map.parts.size()), kMaxCells)));
    bundle.json[name] = {{"format", part.cold.format},
                         {"rotation", part.cold.rotation_block},
                         {"row_type", trace::ggml_type_info(part.rows.type).name},
                         {"pages", std::move(pages)}};
    bundle.add(name + "_parts", map.parts, {int64_t(map.parts.size())});
    if (originals.values.empty()) return;
    std::vector<float> errors;  // of pages, as shares of the rows' RMS; NaN: nothing to compare
    for (const QuantizationFigures& page : quantization_by_page(record, side, originals)) {
        errors.push_back(page.n_cells > 0 ? shortened(page.relative()) : NAN);
    }
    bundle.add(name + "_page_errors", errors, {record.n_stream, int64_t(errors.size()) / record.n_stream});
}

struct Query {
    int64_t stream = 0, token = 0;
    bool operator==(const Query&) const = default;
};

// The worst one, then the last of each stream.
std::vector<Query> chosen_queries(const TraceRecord& record, const RecordCheck& check) {
    const ErrorFigures& figures = check.exact.computed ? check.exact : check.torch;
    std::vector<Query> queries;
    if (!check.pass || record.n_tokens == 1) queries.push_back({figures.worst_stream, figures.worst_token});
    for (int64_t stream = 0; stream < record.n_stream && int64_t(queries.size()) < kMaxQueries; ++stream) {
        const Query last{stream, record.n_tokens - 1};
        if (std::find(queries.begin(), queries.end(), last) == queries.end()) queries.push_back(last);
    }
    return queries;
}

void add_weights(const TraceRecord& record, const AttentionData& data, const std::vector<Query>& queries,
                 Bundle& bundle) {
    const int64_t heads =
        std::max<int64_t>(1, std::min(data.n_head, kMaxWeights / int64_t(queries.size()) /
                                                       std::max<int64_t>(1, std::min(data.n_kv, kMaxBins))));
    const int64_t per_bin = std::max<int64_t>(1, divide_up(data.n_kv, kMaxBins));
    const int64_t n_bins = divide_up(data.n_kv, per_bin), n_pages = divide_up(data.n_kv, kPageTokens);
    std::vector<uint8_t> codes;
    std::vector<float> of_pages, of_sinks;
    ordered_json list = ordered_json::array();
    const auto n_queries = int64_t(queries.size());
    for (const auto& [stream, token] : queries) {
        list.push_back({{"stream", stream}, {"token", token}, {"position", record.position + token}});
        for (int64_t head = 0; head < heads; ++head) {
            const QueryWeights weights = attention_weights(data, stream, token, head);
            for (int64_t first = 0; first < data.n_kv; first += per_bin) {
                const auto begin = weights.cells.begin() + first;
                codes.push_back(
                    weight_code(*std::max_element(begin, begin + std::min(per_bin, data.n_kv - first))));
            }
            for (int64_t first = 0; first < data.n_kv; first += kPageTokens) {
                double sum = 0;
                for (int64_t i = first; i < std::min<int64_t>(first + kPageTokens, data.n_kv); ++i) {
                    sum += weights.cells[size_t(i)];
                }
                of_pages.push_back(shortened(sum));
            }
            of_sinks.push_back(shortened(weights.sink));
        }
    }
    bundle.json["queries"] = std::move(list);
    bundle.json["cells_per_bin"] = per_bin;
    bundle.json["heads_shown"] = heads;
    bundle.add("weights", codes, {n_queries, heads, n_bins});
    bundle.add("page_weights", of_pages, {n_queries, heads, n_pages});
    bundle.add("sink_weights", of_sinks, {n_queries, heads});
}

void add_errors(const TraceRecord& record, const RecordCheck& check, Bundle& bundle) {
    const std::vector<float> recorded = to_floats(record.kqv_out);
    const int64_t heads = record.n_head, dim = record.head_dim_v, n_rows = record.n_tokens * record.n_stream;
    const int64_t per_row = divide_up(n_rows, kMaxRows), shown = divide_up(n_rows, per_row);
    if (heads * (dim + shown) > kMaxValues) return;
    // NaN is the largest of all, and stays.
    const auto raise = [](float& largest, double value) {
        if (std::isnan(value) || value > double(largest)) largest = shortened(value);
    };
    std::vector<float> by_row(size_t(shown * heads), 0.0F), by_channel(size_t(heads * dim), 0.0F);
    for (int64_t row = 0; row < n_rows; ++row) {
        for (int64_t head = 0; head < heads; ++head) {
            raise(by_row[size_t(row / per_row * heads + head)], check.row_shares[size_t(row * heads + head)]);
            for (int64_t d = 0; d < dim; ++d) {
                const auto at = size_t((row * heads + head) * dim + d);
                raise(by_channel[size_t(head * dim + d)],
                      std::fabs(double(recorded[at]) - check.recomputed[at]));
            }
        }
    }
    bundle.json["queries_per_row"] = per_row;
    bundle.add("row_shares", by_row, {shown, heads});
    bundle.add("channel_errors", by_channel, {heads, dim});
}

// Rows of a few cells in 8 bits, and statistics over all cells by channel. decoded: [cells][n_head_kv][dim].
void add_values(const TraceRecord& record, Side side, const std::string& name, const Originals& originals,
                Bundle& bundle) {
    const DensePart decoded = dense_part(record, side);
    const int64_t heads = record.n_head_kv, dim = side == Side::k ? record.head_dim_k : record.head_dim_v;
    if (heads * dim * kSampledCells > kMaxValues) return;
    std::vector<int64_t> stored;
    for (size_t cell = 0; cell < decoded.stored.size(); ++cell) {
        if (decoded.stored[cell] != 0) stored.push_back(int64_t(cell));
    }
    if (stored.empty()) return;
    const bool with_originals = !originals.values.empty();
    const auto original = [&](int64_t cell, int64_t i) {
        return originals.known[size_t(cell)] != 0 ? double(originals.values[size_t(cell * heads * dim + i)])
                                                  : double(NAN);
    };
    const auto value = [&](int64_t cell, int64_t i) {
        return decoded.values[size_t(cell * heads * dim + i)];
    };

    // smallest, largest, RMS; RMS of the decoding's error where originals are known
    std::vector<float> channels;
    for (int64_t i = 0; i < heads * dim; ++i) {
        double low = INFINITY, high = -INFINITY, squares = 0, error_squares = 0;
        int64_t n_known = 0;
        for (const int64_t cell : stored) {
            const double x = value(cell, i);
            low = std::min(low, x);
            high = std::max(high, x);
            squares += x * x;
            if (!with_originals || originals.known[size_t(cell)] == 0) continue;
            const double error = x - original(cell, i);
            error_squares += error * error;
            ++n_known;
        }
        channels.insert(
            channels.end(),
            {shortened(low), shortened(high), shortened(std::sqrt(squares / double(stored.size()))),
             n_known > 0 ? shortened(std::sqrt(error_squares / double(n_known))) : NAN});
    }
    bundle.add(name + "_channels", channels, {heads, dim, 4});

    std::vector<int64_t> sampled;
    const auto n = int64_t(stored.size()), n_sampled = std::min(n, kSampledCells);
    for (int64_t i = 0; i < n_sampled; ++i) sampled.push_back(stored[size_t(i * n / n_sampled)]);
    double largest = 0;
    for (const int64_t cell : sampled) {
        for (int64_t i = 0; i < heads * dim; ++i) {
            const double size = std::fabs(value(cell, i));
            if (std::isfinite(size)) largest = std::max(largest, size);
        }
    }
    const double scale = largest > 0 ? largest / 127 : 1;
    // -128: unknown, or no finite number
    const auto code = [&](double x) {
        return std::isfinite(x) ? int8_t(std::clamp(std::lround(x / scale), -127L, 127L)) : int8_t(-128);
    };
    std::vector<int8_t> after, before;
    for (const int64_t cell : sampled) {
        for (int64_t i = 0; i < heads * dim; ++i) {
            after.push_back(code(value(cell, i)));
            if (with_originals) before.push_back(code(original(cell, i)));
        }
    }
    bundle.json[name]["sampled_cells"] = sampled;
    bundle.json[name]["sample_scale"] = scale;
    bundle.add(name + "_samples", after, {n_sampled, heads, dim});
    if (with_originals) bundle.add(name + "_originals", before, {n_sampled, heads, dim});
}

void add_misreadings(const TraceRecord& record, const RecordCheck& check, const AttentionData& data,
                     const Query& query, Bundle& bundle) {
    if (record.n_head * record.head_dim_v * 8 > kMaxValues) return;
    const std::vector<Misreading> all =
        misreadings(record, data, check.recomputed, query.stream, query.token);
    ordered_json list = ordered_json::array();
    const auto number = [](double x) { return std::isfinite(x) ? ordered_json(x) : ordered_json(nullptr); };
    std::vector<float> outputs;
    for (const Misreading& m : all) {
        list.push_back({{"what", m.what},
                        {"against_right", number(m.against_right)},
                        {"against_recorded", number(m.against_recorded)}});
        for (const double x : m.output) outputs.push_back(shortened(x));
    }
    bundle.json["misreadings"] = std::move(list);
    bundle.json["misread_query"] = {{"stream", query.stream}, {"token", query.token}};
    bundle.add("misread_outputs", outputs, {int64_t(all.size()), record.n_head, record.head_dim_v});
    const std::vector<float> recorded = to_floats(record.kqv_out);
    std::vector<float> row;
    const int64_t n = record.n_head * record.head_dim_v;
    for (int64_t i = 0; i < n; ++i) {
        row.push_back(
            shortened(double(recorded[size_t((query.stream * record.n_tokens + query.token) * n + i)])));
    }
    bundle.add("recorded_output", row, {record.n_head, record.head_dim_v});
}

}  // namespace

Bundle record_detail(const TraceRecord& record, const RecordCheck& check, const RecordOriginals& originals) {
    const AttentionData data = attention_data(record);
    Bundle bundle;
    bundle.json = {{"layer", record.layer},
                   {"step", record.step},
                   {"cache", record.cache == trace::CacheKind::mixed ? "mixed" : "standard"},
                   {"n_tokens", record.n_tokens},
                   {"n_head", record.n_head},
                   {"n_head_kv", record.n_head_kv},
                   {"n_kv", record.n_kv},
                   {"n_stream", record.n_stream},
                   {"head_dim_k", record.head_dim_k},
                   {"head_dim_v", record.head_dim_v},
                   {"kq_scale", record.kq_scale},
                   {"max_bias", record.max_bias},
                   {"logit_softcap", record.logit_softcap},
                   {"has_mask", record.mask.has_value()},
                   {"has_sinks", record.sinks.has_value()},
                   {"v_is_view_of_k", record.v_is_view_of_k},
                   {"cells_shown", std::min(record.n_kv * record.n_stream, kMaxCells)},
                   {"views", views_json(record)}};
    std::vector<uint8_t> visible = visible_cells(record);
    visible.resize(size_t(std::min<int64_t>(int64_t(visible.size()), kMaxCells)));
    bundle.add("visible", visible, {int64_t(visible.size())});
    add_side(record, Side::k, "k", originals.k, bundle);
    add_side(record, Side::v, "v", originals.v, bundle);
    const std::vector<Query> queries = chosen_queries(record, check);
    add_weights(record, data, queries, bundle);
    add_errors(record, check, bundle);
    add_values(record, Side::k, "k", originals.k, bundle);
    add_values(record, Side::v, "v", originals.v, bundle);
    add_misreadings(record, check, data, queries.front(), bundle);
    return bundle;
}

}  // namespace mixed_kv::trace_tools
