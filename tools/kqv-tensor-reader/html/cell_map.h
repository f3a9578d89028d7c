#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kqv-tensor-reader/trace_values.h"
#include "trace/trace_schema.h"

namespace mixed_kv::trace_tools {

// What a page of 64 cells consists of: exact rows, or a block of codes. A page may have several, each with
// the cells that it is read for.
//
// A trace does not say why a row is exact, but where it lies among cold ones: "overlay" in a page that has
// blocks too, "kept" in a page before cold ones (pinned, or written again), "hot" behind all of them.
struct PagePart {
    std::string kind;     // "hot", "kept", "overlay" or "block"
    std::string format;   // of its rows or codes: "f16", "q8_0", "q4"
    int64_t n_cells = 0;  // that are read from it
    int64_t bytes = 0;    // all KV heads
};

struct MappedPage {
    int64_t first_cell = 0;  // stream * n_kv + index
    int64_t n_cells = 0;     // in the op's view; the last page of a stream may have fewer than 64
    std::vector<PagePart> parts;
};

// The storage of one side of a record, cell by cell and page by page.
struct CellMap {
    // Of each cell, [n_stream * n_kv]: 0 nothing stored, else 1 + index of the page's part that it is read
    // from.
    std::vector<uint8_t> parts;
    std::vector<MappedPage> pages;  // by first cell
};

CellMap map_cells(const trace::TraceRecord& record, Side side);

}  // namespace mixed_kv::trace_tools
