#include "kqv-tensor-reader/quantization.h"

#include <algorithm>
#include <cmath>

#include "mixed_kv/cold_format.h"
#include "mixed_kv/fp16.h"

namespace mixed_kv::trace_tools {

using trace::CachePart;
using trace::CellPlace;
using trace::TraceRecord;

namespace {

const CachePart& part_of(const TraceRecord& record, Side side) {
    return side == Side::k || record.v_is_view_of_k ? record.k : record.v;
}

bool rows_are_exact(const CachePart& part) {
    return trace::ggml_type_info(part.rows.type).block_values == 1;  // f32, f16, bf16
}

int64_t head_dim_of(const TraceRecord& record, Side side) {
    return side == Side::k ? record.head_dim_k : record.head_dim_v;
}

// Figures of each cell that is read from codes and whose original is known.
template <typename Use>
void for_quantized_cells(const TraceRecord& record, Side side, const Originals& originals, Use use) {
    if (originals.values.empty()) return;
    const CachePart& part = part_of(record, side);
    const bool exact_rows = rows_are_exact(part);
    const int64_t row_values = record.n_head_kv * head_dim_of(record, side);
    const std::vector<CellPlace> places = trace::locate_cells(record, part);
    const DensePart decoded = dense_part(record, side);
    for (size_t cell = 0; cell < places.size(); ++cell) {
        const bool quantized = places[cell].where == CellPlace::Where::page ||
                               (places[cell].where == CellPlace::Where::row && !exact_rows);
        if (!quantized || originals.known[cell] == 0) continue;
        QuantizationFigures of_cell{.n_cells = 1, .n_values = row_values};
        for (int64_t i = 0; i < row_values; ++i) {
            const auto at = size_t(int64_t(cell) * row_values + i);
            const double original = double(originals.values[at]);
            const double error = std::fabs(decoded.values[at] - original);
            of_cell.squared_error += error * error;
            of_cell.squared_original += original * original;
            if (std::isnan(error) || error > of_cell.max_error) of_cell.max_error = error;
        }
        use(int64_t(cell), of_cell);
    }
}

}  // namespace

double QuantizationFigures::rms() const {
    return n_values > 0 ? std::sqrt(squared_error / double(n_values)) : 0;
}

double QuantizationFigures::relative() const {
    return squared_error == 0 ? 0 : std::sqrt(squared_error / squared_original);
}

void QuantizationFigures::add(const QuantizationFigures& other) {
    n_cells += other.n_cells;
    n_values += other.n_values;
    squared_error += other.squared_error;
    squared_original += other.squared_original;
    // A NaN, once seen, stays.
    max_error = max_error >= other.max_error || std::isnan(max_error) ? max_error : other.max_error;
}

QuantizationFigures quantization(const TraceRecord& record, Side side, const Originals& originals) {
    QuantizationFigures figures;
    for_quantized_cells(record, side, originals,
                        [&](int64_t /*cell*/, const QuantizationFigures& of_cell) { figures.add(of_cell); });
    return figures;
}

std::vector<QuantizationFigures> quantization_by_page(const TraceRecord& record, Side side,
                                                      const Originals& originals) {
    const int64_t n_pages = (record.n_kv + kPageTokens - 1) / kPageTokens;
    std::vector<QuantizationFigures> pages(size_t(record.n_stream * n_pages));
    for_quantized_cells(record, side, originals, [&](int64_t cell, const QuantizationFigures& of_cell) {
        pages[size_t(cell / record.n_kv * n_pages + cell % record.n_kv / kPageTokens)].add(of_cell);
    });
    return pages;
}

Originals exact_rows_of(const TraceRecord& other, const TraceRecord& record, Side side) {
    Originals originals;
    const bool same_shape = other.has_sources && other.n_kv == record.n_kv &&
                            other.n_stream == record.n_stream && other.n_head_kv == record.n_head_kv &&
                            head_dim_of(other, side) == head_dim_of(record, side);
    const CachePart& part = part_of(other, side);
    if (!same_shape || !rows_are_exact(part)) return originals;
    const DensePart dense = dense_part(other, side);
    originals.values.assign(dense.values.begin(), dense.values.end());
    for (const CellPlace& place : trace::locate_cells(other, part)) {
        originals.known.push_back(place.where == CellPlace::Where::row);
    }
    return originals;
}

RecordOriginals originals_kept(trace::OriginalRows& written, const TraceRecord& record) {
    const auto side = [&](bool is_value) {
        trace::OriginalRows::Rows rows = written.rows(record, is_value);
        Originals originals;
        originals.values.reserve(rows.values.size());
        for (const fp16_t bits : rows.values) originals.values.push_back(fp16_to_fp32(bits));
        originals.known = std::move(rows.known);
        return originals;
    };
    if (!record.has_sources) return {};
    return {side(false), side(true)};
}

RecordOriginals originals_against(const trace::TraceReader& other, const TraceRecord& record) {
    const trace::RecordId id{record.layer, record.step};
    const std::vector<trace::RecordId>& ids = other.records();
    if (std::find(ids.begin(), ids.end(), id) == ids.end() || !record.has_sources) return {};
    const TraceRecord exact = other.load(id);
    return {exact_rows_of(exact, record, Side::k), exact_rows_of(exact, record, Side::v)};
}

RecordQuantization quantization(const TraceRecord& record, const RecordOriginals& originals) {
    if (!record.has_sources) return {};
    return {quantization(record, Side::k, originals.k), quantization(record, Side::v, originals.v)};
}

}  // namespace mixed_kv::trace_tools
