#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "mixed_kv/kv_tensor.h"
#include "mixed_kv/window_tracker.h"

namespace mixed_kv::test {

// A K-shift whose results are exact: kinds 1 to 3 are that many quarter turns of every pair.
struct QuarterTurns {
    QuarterTurns(HeadShape shape, const RotaryPairs& pairs, const std::vector<std::uint32_t>& kinds) {
        const float c[] = {0, -1, 0}, s[] = {1, 0, -1};
        for (int kind = 0; kind < 3; ++kind) {
            turns.insert(turns.end(), static_cast<std::size_t>(pairs.n_pairs), c[kind]);
            turns.insert(turns.end(), static_cast<std::size_t>(pairs.n_pairs), s[kind]);
        }
        shift = {shape.n_head, shape.head_dim, pairs, kinds.data(), turns.data(), distances, 3};
    }
    std::vector<float> turns;
    std::int64_t distances[3] = {1, 2, 3};
    KeyShift shift;
};

// What a KvTensor must hold, as a plain array of rows that is written along with it. It knows nothing of
// freezing: it looks at the page states after each operation, judges whether each change was allowed, and
// takes over what a block decodes to. From then on those rows must stay as they are, bit for bit.
class KvModel {
  public:
    // tracker: the one whose windows and sinks the tensor has to respect; null for f16.
    KvModel(const KvTensor& tensor, const WindowTracker* tracker);

    // The same operations as on the tensor.
    void write_row(std::int64_t cell, const float* row);
    void write_row(std::int64_t cell, const fp16_t* row);
    void write_bytes(std::size_t offset, const void* data, std::size_t size);
    void fill_bytes(std::size_t offset, std::uint8_t value, std::size_t size);
    void copy_rows(const KvModel& from, std::int64_t from_cell, std::int64_t to_cell, std::int64_t n);
    void clear();
    // Before the tensor's: a K-shift whose turns are quarter turns, so that every result is exact.
    void shift(const KeyShift& shift);
    fp16_t* row(std::int64_t cell) { return rows_.data() + cell * tensor_.config().row_elements; }
    const std::vector<fp16_t>& rows() const { return rows_; }

    // Freezing needs memory first: when that is short, pages may stay hot.
    void expect_scarce_memory() { memory_is_ample_ = false; }

    // To be called after every operation. is_graph: pages that were written to must not have frozen.
    // Everything that is wrong, one line each; empty when all is well.
    std::vector<std::string> check(bool is_graph);

    // Bytes of the tensor's pages as the arena counts them, from the page records alone.
    std::size_t live_bytes() const;

  private:
    struct Seen {
        PageState state = PageState::empty;
        std::uint64_t overlay = 0;
        std::vector<std::byte> block;
        bool refused = false;
    };
    void check_page(std::size_t index, bool is_graph);
    void check_missed_freeze(std::size_t index, const Page& page, bool is_graph);
    void check_block(std::size_t index, const Page& page, bool is_graph);
    void decode(const Page& page, std::vector<fp16_t>& rows) const;  // the block alone: [64][row_elements]
    // The page's rows as its block has to hold them: K-shifts that are pending taken back.
    std::vector<fp16_t> stored_rows(std::size_t index) const;
    void turn(std::size_t index, int token, bool back, fp16_t* row) const;
    std::vector<std::byte> encode(std::size_t index, std::uint64_t counted) const;
    void check_codec_error(std::size_t index, const Page& page, const std::vector<fp16_t>& truth,
                           const std::vector<fp16_t>& decoded);
    bool is_stored(std::int64_t cell) const;
    bool shift_needs_encoding(std::size_t index, const KeyShift& shift) const;
    void fail(std::size_t page, const std::string& what);
    std::int64_t first_cell(std::size_t index) const;
    std::uint64_t valid(std::size_t index) const;
    void touch(std::int64_t cell);

    const KvTensor& tensor_;
    const WindowTracker* tracker_;
    std::int64_t pages_per_stream_;
    std::vector<fp16_t> rows_;                // [n_stream * n_cells][row_elements]
    std::vector<std::uint8_t> ever_written_;  // per cell
    std::vector<std::uint64_t> touched_;      // per page, since the last check
    std::vector<std::uint8_t> rewritten_;     // per page, since the last check: a K-shift had to encode
    std::vector<Seen> seen_;
    std::vector<std::string> problems_;
    bool memory_is_ample_ = true;
};

// Runs the three steps of a graph's write, the jobs from last to first.
void write_rows(KvTensor& tensor, const std::vector<std::int64_t>& cells, const KvTensor::RowSource& source);

}  // namespace mixed_kv::test
