#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "mixed_kv/mask_view.h"

namespace mixed_kv {

// Decides which cells of a cache must stay exact. One tracker serves all layers of one cache (same cells,
// same masks). It never sees positions or sequence ids, only what a backend sees: the cells written by each
// graph, in token order, and the attention masks. From these it keeps, per cell,
//   window  the cell is among the last `window` cells, by write order, visible to the newest query that sees
//   it;
//           it stays so until a newer query of its sequence shows otherwise. A fresh write is in the window
//           until a mask has been seen.
//   sink    the query of the cell's own token saw at most `sinks` cells, itself included. Stays until the
//   cell
//           is written again.
// Masked is not dead: cells hidden from every query of a graph keep what they have, so an idle sequence keeps
// its window while others decode. A cell that several queries of one graph see stays if it is in the window
// of any. At most max(8 * window, n_cells / 8) cells per stream are in the window beyond those of the current
// graph: the oldest evidence is dropped first.
class WindowTracker {
  public:
    struct Config {
        std::int64_t n_cells;  // per stream
        int n_stream;
        int window;                                // rows per sequence, >= 0
        int sinks;                                 // rows per sequence, >= 0
        std::uint32_t counter_limit = UINT32_MAX;  // write orders are renumbered beyond this (lower in tests)
    };
    explicit WindowTracker(const Config& config);  // throws Error for impossible values

    // A graph is named by an epoch; repeated calls for one epoch (one per layer) are no-ops.
    // cells: global cell (stream * n_cells + cell) of each token of the graph, in token order.
    void on_write(std::uint64_t epoch, std::span<const std::int64_t> cells);
    // The mask of this graph: queries [n_q] per stream, streams first_stream .. first_stream + n_stream - 1,
    // n_kv cells from cell 0. Query i of stream s belongs to token s * n_q + i of on_write when counts agree.
    void on_mask(std::uint64_t epoch, const MaskView& mask, int first_stream, int n_stream, std::int64_t n_q,
                 std::int64_t n_kv);
    // Rows written from outside a graph (state restore), the rows of a sequence in its order, at any cells:
    // they become unprotected except the last `window` of them; the first `sinks` of more than window + sinks
    // become sinks (fewer stay protected as a whole). Calls for one tensor and stream continue each other
    // until a graph, or a write of another tensor, comes between, or one begins again at the first cell.
    // Whether this call continued one.
    bool on_restore(std::int64_t first_cell, std::int64_t n_cells, const void* tensor = nullptr);
    // Copies what is known of the source cells (stream copy). Overlapping ranges behave like memmove. Tensors
    // that share a tracker are copied one after the other: until something else happens, the same copy of
    // another tensor is the one that was made already.
    void on_copy(std::int64_t from_cell, std::int64_t to_cell, std::int64_t n_cells,
                 const void* tensor = nullptr);
    void clear();

    // Bit t: cell 64 * page + t of the stream is protected by a window / is a sink.
    std::uint64_t window_cells(int stream, std::int64_t page) const noexcept {
        return window_[static_cast<std::size_t>(stream * pages_per_stream_ + page)];
    }
    std::uint64_t sink_cells(int stream, std::int64_t page) const noexcept {
        return sinks_[static_cast<std::size_t>(stream * pages_per_stream_ + page)];
    }
    std::int64_t n_window_cells(int stream) const noexcept;
    // Of the page's newest row: pages with a lower one are older. 0: never written.
    std::uint32_t newest_order(int stream, std::int64_t page) const noexcept {
        return page_newest_[static_cast<std::size_t>(stream * pages_per_stream_ + page)];
    }

    const Config& config() const noexcept { return config_; }
    // Bytes of bookkeeping.
    std::size_t memory_bytes() const noexcept;

  private:
    void begin_graph();
    void restore_cell(std::int64_t cell);
    std::uint32_t next_order();
    void renumber();
    void touch(std::int64_t cell);
    void set_window(std::size_t page, std::uint64_t bits) noexcept;
    void scan_query(const fp16_t* row, int stream, std::int64_t n_kv, std::int64_t own);
    void keep_newest(int stream, std::int64_t n_pages, std::int64_t start_page);
    void enforce_bound(int stream);

    Config config_;
    std::int64_t pages_per_stream_ = 0;
    std::vector<std::uint64_t> window_;       // [n_stream][pages]
    std::vector<std::uint64_t> sinks_;        // [n_stream][pages]
    std::vector<std::int64_t> n_window_;      // [n_stream]
    std::vector<std::uint32_t> write_order_;  // [n_stream][n_cells], 0: never written
    std::vector<std::uint32_t>
        page_newest_;                      // [n_stream][pages], no cell of the page has a later write order
    std::vector<std::uint32_t> evidence_;  // [n_stream][n_cells], graph that last protected the cell
    std::vector<std::int64_t> tokens_;     // cells of the current epoch
    std::uint64_t write_epoch_ = UINT64_MAX;
    std::uint64_t mask_epoch_ = UINT64_MAX;
    std::uint32_t order_ = 0;
    std::uint32_t graph_ = 0;  // evidence of the current graph
    // The restore in progress.
    struct Run {
        bool is_open = false;
        const void* tensor = nullptr;
        int stream = -1;
        std::int64_t first_cell = -1;  // global
        std::int64_t n_rows = 0;
        std::vector<std::int64_t> held;  // global cells that it protects, in order, from first_held on
        std::size_t first_held = 0;
    };
    Run run_;
    // The latest copy, until a graph or a restore.
    struct Copy {
        std::int64_t from_cell = -1, to_cell = -1, n_cells = 0;
        const void* tensor = nullptr;
    };
    Copy copy_;
    // Scratch of one mask: cells the query sees, cells any processed query saw, cells in some window. [pages]
    std::vector<std::uint64_t> visible_, seen_, keep_;
    std::vector<std::uint32_t> orders_;
    std::vector<std::pair<std::uint64_t, std::int64_t>> oldest_;
};

}  // namespace mixed_kv
