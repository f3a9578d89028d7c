#include "trace/trace_schema.h"

#include <algorithm>
#include <bit>
#include <charconv>

#include "trace/text.h"

namespace mixed_kv::trace {
namespace {

// Reads a decimal number without sign, leading zeros or anything after it.
bool parse_number(std::string_view text, int32_t& number) noexcept {
    if (text.empty() || text.front() < '0' || text.front() > '9' ||
        (text.size() > 1 && text.front() == '0')) {
        return false;
    }
    const char* end = text.data() + text.size();
    const auto result = std::from_chars(text.data(), end, number);
    return result.ec == std::errc() && result.ptr == end;
}

}  // namespace

Shape axis_order(const Shape& ne, const Shape& nb) {
    Shape order{0, 1, 2, 3};
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
        // A dimension of one element has no meaningful stride.
        if ((ne[a] == 1) != (ne[b] == 1)) {
            return ne[b] == 1;
        }
        return ne[a] != 1 && nb[a] < nb[b];
    });
    return order;
}

std::vector<std::string> cold_formats_of(const ColdLayout& layout) {
    std::vector<std::string> formats;
    for (size_t at = 0; at < layout.format.size();) {
        const size_t end = std::min(layout.format.find(' ', at), layout.format.size());
        formats.push_back(layout.format.substr(at, end - at));
        at = end + 1;
    }
    return formats;
}

std::vector<CellPlace> locate_cells(const TraceRecord& record, const CachePart& part) {
    std::vector<CellPlace> places(static_cast<size_t>(record.n_kv * record.n_stream));
    for (size_t i = 0; i < part.pages.size(); ++i) {
        const ColdPage& page = part.pages[i];
        for (uint64_t left = page.held; left != 0; left &= left - 1) {
            const int64_t t = std::countr_zero(left), n = part.cold.page_tokens;
            places[static_cast<size_t>(page.first_cell + t)] = {
                CellPlace::Where::page, static_cast<int32_t>(i),
                static_cast<int32_t>((t - page.rotation + n) % n)};
        }
    }
    for (size_t i = 0; i < part.cells.size(); ++i) {
        places[static_cast<size_t>(part.cells[i])] = {CellPlace::Where::row, static_cast<int32_t>(i), 0};
    }
    return places;
}

std::string tensor_name(std::string_view kind, int32_t layer, int32_t step) {
    return cat(kind, '-', layer, "_step_", step);
}

std::optional<ParsedName> parse_tensor_name(std::string_view name) noexcept {
    constexpr std::string_view kStep = "_step_";
    const size_t dash = name.find('-');
    const size_t step = name.rfind(kStep);
    if (dash == std::string_view::npos || dash == 0 || step == std::string_view::npos || step < dash) {
        return std::nullopt;
    }
    ParsedName parsed{name.substr(0, dash), 0, 0};
    if (!parse_number(name.substr(dash + 1, step - dash - 1), parsed.layer) ||
        !parse_number(name.substr(step + kStep.size()), parsed.step)) {
        return std::nullopt;
    }
    return parsed;
}

}  // namespace mixed_kv::trace
