#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "mixed_kv/mask_view.h"

namespace mixed_kv {

// Decides which cells of a cache must stay exact. One tracker serves all layers of one cache (same cells, same
// masks). It never sees positions or sequence ids, only what a backend sees: the cells written by each graph,
// in token order, and the attention masks. From these it keeps, per cell,
//   window  the cell is among the last `window` cells, by write order, visible to the newest query that sees it;
//           it stays so until a newer query of its sequence shows otherwise. A fresh write is in the window
//           until a mask has been seen.
//   sink    the query of the cell's own token saw at most `sinks` cells, itself included. Stays until the cell
//           is written again.
// Masked is not dead: cells hidden from every query of a graph keep what they have.
// At most max(8 * window, n_cells / 8) cells per stream are in the window beyond those of the current graph: the
// oldest evidence is dropped first.
class WindowTracker {
  public:
    struct Config {
        std::int64_t n_cells;  // per stream
        int n_stream;
        int window;            // rows per sequence, >= 0
        int sinks;             // rows per sequence, >= 0
    };
    explicit WindowTracker(const Config& config);

    // A graph is named by an epoch; repeated calls for one epoch (one per layer) are no-ops.
    // cells: global cell (stream * n_cells + cell) of each token of the graph, in token order.
    void on_write(std::uint64_t epoch, std::span<const std::int64_t> cells);
    // The mask of this graph: queries [n_q] per stream, streams first_stream .. first_stream + n_stream - 1,
    // n_kv cells from cell 0. Query i of stream s belongs to token s * n_q + i of on_write when counts agree.
    void on_mask(std::uint64_t epoch, const MaskView& mask, int first_stream, int n_stream, std::int64_t n_q,
                 std::int64_t n_kv);
    // Rows written from outside a graph (state restore): cells become unprotected except the last `window` of
    // the range; the first `sinks` of a range longer than window + sinks become sinks.
    void on_restore(std::int64_t first_cell, std::int64_t n_cells);
    // Copies what is known of the source cells (stream copy).
    void on_copy(std::int64_t from_cell, std::int64_t to_cell, std::int64_t n_cells);
    void clear();

    // Bit t: cell 64 * page + t of the stream is protected by a window / is a sink.
    std::uint64_t window_cells(int stream, std::int64_t page) const noexcept;
    std::uint64_t sink_cells(int stream, std::int64_t page) const noexcept;
    std::int64_t n_window_cells(int stream) const noexcept;

    const Config& config() const noexcept { return config_; }
    // Bytes of bookkeeping.
    std::size_t memory_bytes() const noexcept;

  private:
    Config config_;
    // cache/ owner: add members as needed
    std::int64_t pages_per_stream_ = 0;
    std::vector<std::uint64_t> window_;       // [n_stream][pages]
    std::vector<std::uint64_t> sinks_;        // [n_stream][pages]
    std::vector<std::uint32_t> write_order_;  // [n_stream][n_cells], 0: never written
    std::vector<std::uint32_t> evidence_;     // [n_stream][n_cells], evidence number of the last query that protected it
    std::vector<std::int64_t> tokens_;        // cells of the current epoch
    std::uint64_t write_epoch_ = 0;
    std::uint64_t mask_epoch_ = 0;
    std::uint32_t order_ = 0;
};

}  // namespace mixed_kv
