#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "mixed_kv/window_tracker.h"

namespace mixed_kv::test {

// The rules of WindowTracker, cell by cell and without any shortcut. Write orders never run out here.
class WindowReference {
  public:
    explicit WindowReference(const WindowTracker::Config& config) : config_(config) {}

    void on_write(const std::vector<std::int64_t>& cells);
    enum class Tokens {
        known,       // the graph's cells were given to on_write(), one per query
        miscounted,  // they were given, but their number does not fit
        none,        // a graph without writes
    };
    // visible[s][q]: cells of stream first_stream + s that query q sees.
    void on_mask(const std::vector<std::vector<std::set<std::int64_t>>>& visible, int first_stream,
                 Tokens tokens);
    void on_restore(std::int64_t first_cell, std::int64_t n_cells);  // a range of its own
    void on_copy(std::int64_t from_cell, std::int64_t to_cell, std::int64_t n_cells);

    // Empty, or the first difference.
    std::string difference(const WindowTracker& tracker) const;

  private:
    struct Cell {
        std::uint64_t order = 0;
        std::uint64_t evidence = 0;
        bool window = false, sink = false;
    };
    Cell& at(std::int64_t cell) { return cells_[cell]; }
    void enforce_bound(int stream);

    WindowTracker::Config config_;
    std::map<std::int64_t, Cell> cells_;  // by global cell
    std::vector<std::int64_t> tokens_;
    std::uint64_t order_ = 0, graph_ = 0;
};

// A mask in memory, [n_stream][n_q][n_kv + gap], from the cells that each query sees.
struct Mask {
    Mask(const std::vector<std::vector<std::set<std::int64_t>>>& visible, std::int64_t n_kv);
    MaskView view() const;
    std::vector<fp16_t> data;
    std::int64_t row_elements, n_q;
    int n_stream;
};

}  // namespace mixed_kv::test
