#pragma once

#include <cstdint>
#include <map>
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
// freezing: it looks at the pages after each operation and judges whether each change was allowed. A row may
// turn into what a block makes of it once; from then on it must read the same, bit for bit, until it is
// written. With a ladder, a narrower block may take it over again: then check() must follow every single
// step.
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
    // One block, with the cells (global) of its rows in all pages that have it; -1: none.
    struct Block {
        const std::byte* data = nullptr;
        int bits = 0;
        std::size_t head_bytes = 0;
        std::uint64_t rows = 0;  // that are in use
        std::int64_t cells[64];
        std::uint32_t users[2] = {0, 0};
        const std::uint32_t* claimed_users = nullptr;
        std::uint32_t page = 0;  // one that has it
    };
    std::vector<Block> blocks() const;
    void check_page(std::size_t index, bool is_graph);
    void check_missed_freeze(std::size_t index, const Page& page, bool is_graph);
    void check_block(const Block& block, bool is_graph);
    void check_first_rounding(const Block& block, std::uint64_t counted, const std::vector<fp16_t>& decoded,
                              bool is_graph);
    void decode(const std::byte* data, int bits, std::vector<fp16_t>& rows) const;  // [64][row_elements]
    void turn(std::int64_t cell, fp16_t* row) const;  // what is pending for a cell of a cold page
    std::vector<std::byte> encode(const std::vector<fp16_t>& rows, int bits, std::uint64_t counted) const;
    void check_codec_error(std::size_t index, const std::byte* data, int bits, std::uint64_t counted,
                           const std::vector<fp16_t>& truth, const std::vector<fp16_t>& decoded);
    void check_memory();
    bool is_stored(std::int64_t cell) const;
    std::size_t head_bytes(int bits) const;
    int block_rows(int bits) const;  // FP16 rows that take the memory of a block
    void note_storage();
    void fail(std::size_t page, const std::string& what);
    const Page& page_of(std::int64_t cell) const;
    std::size_t index_of(std::int64_t cell) const;
    std::int64_t first_cell(std::size_t index) const;
    std::uint64_t valid(std::size_t index) const;
    void touch(std::int64_t cell);

    const KvTensor& tensor_;
    const WindowTracker* tracker_;
    std::int64_t pages_per_stream_;
    std::vector<fp16_t> rows_;                // [n_stream * n_cells][row_elements]
    std::vector<std::uint8_t> ever_written_;  // per cell
    std::vector<std::uint8_t> rounded_;       // per cell: since it was written
    std::vector<std::uint8_t> stored_bits_;   // per cell: of its block at the last check; 16: exact
    std::vector<std::uint64_t> touched_;      // per page, since the last check
    std::vector<std::uint8_t> refused_;       // per page: its rows cannot be encoded
    std::map<const std::byte*, int> live_;    // rows of each block at the last check
    std::vector<std::string> problems_;
    bool memory_is_ample_ = true;
};

// Runs the three steps of a graph's write, the jobs from last to first.
void write_rows(KvTensor& tensor, const std::vector<std::int64_t>& cells, const KvTensor::RowSource& source);

}  // namespace mixed_kv::test
