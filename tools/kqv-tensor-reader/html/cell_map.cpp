#include "kqv-tensor-reader/html/cell_map.h"

#include <algorithm>
#include <map>

#include "mixed_kv/cold_format.h"

namespace mixed_kv::trace_tools {

using trace::CachePart;
using trace::CellPlace;

namespace {

// The parts of one page under construction; those of the same source are one.
class PageParts {
  public:
    static constexpr int64_t kRows = -1;

    explicit PageParts(MappedPage& page) : page_(page) {}

    // source: a block's index, or kRows.
    uint8_t add_cell(int64_t source, const PagePart& part, int64_t bytes_a_cell) {
        const auto [found, is_new] = index_.try_emplace(source, page_.parts.size());
        if (is_new) page_.parts.push_back(part);
        PagePart& of_page = page_.parts[found->second];
        ++of_page.n_cells;
        of_page.bytes += bytes_a_cell;
        return uint8_t(std::min<size_t>(found->second + 1, UINT8_MAX));
    }

  private:
    MappedPage& page_;
    std::map<int64_t, size_t> index_;
};

}  // namespace

CellMap map_cells(const trace::TraceRecord& record, Side side) {
    const CachePart& part = side == Side::k || record.v_is_view_of_k ? record.k : record.v;
    const std::vector<CellPlace> places = trace::locate_cells(record, part);
    const int64_t row_bytes =
        part.cells.empty() ? 0 : int64_t(part.rows.bytes.size()) / int64_t(part.cells.size());
    const std::vector<std::string> formats = trace::cold_formats_of(part.cold);
    const bool is_value = &part == &record.v;
    const int64_t head_dim = is_value ? record.head_dim_v : record.head_dim_k;
    const char* row_format = trace::ggml_type_info(part.rows.type).name;
    CellMap map;
    map.parts.resize(places.size());
    for (int64_t stream = 0; stream < record.n_stream; ++stream) {
        const int64_t stream_begin = stream * record.n_kv, stream_end = stream_begin + record.n_kv;
        const auto is_cold = [&](int64_t cell) {
            return places[size_t(cell)].where == CellPlace::Where::page;
        };
        int64_t last_cold = stream_end - 1;
        while (last_cold >= stream_begin && !is_cold(last_cold)) --last_cold;
        for (int64_t first = stream_begin; first < stream_end; first += kPageTokens) {
            const int64_t end = std::min<int64_t>(first + kPageTokens, stream_end);
            bool has_block = false;
            for (int64_t cell = first; cell < end; ++cell) has_block = has_block || is_cold(cell);
            const char* exact = has_block ? "overlay" : first < last_cold ? "kept" : "hot";
            MappedPage page{first, end - first, {}};
            PageParts parts(page);
            for (int64_t cell = first; cell < end; ++cell) {
                const CellPlace& place = places[size_t(cell)];
                uint8_t& at = map.parts[size_t(cell)];
                if (place.where == CellPlace::Where::row) {
                    at = parts.add_cell(PageParts::kRows, {exact, row_format, 0, 0}, row_bytes);
                } else if (place.where == CellPlace::Where::page) {
                    const std::string& name = formats[size_t(part.pages[size_t(place.index)].format)];
                    const ColdFormat* format = find_cold_format(name);
                    const int64_t head_bytes =
                        format == nullptr ? part.cold.block_bytes
                                          : int64_t(format->block_bytes(
                                                is_value ? KvRole::value : KvRole::key, int(head_dim)));
                    at = parts.add_cell(place.index, {"block", name, 0, head_bytes * record.n_head_kv}, 0);
                }
            }
            map.pages.push_back(std::move(page));
        }
    }
    return map;
}

}  // namespace mixed_kv::trace_tools
