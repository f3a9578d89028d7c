#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "mixed_kv/page.h"

namespace mixed_kv {

namespace kernels {
struct KernelSet;
}
class PageArena;
class WindowTracker;

// One layer's K or V: n_stream * n_cells rows of row_elements fp16 values, stored in pages.
//
// Writing has three steps, so that the owner can spread the work over its threads:
//   begin_write(cells)                 serial: freezes are decided, storage is reserved, page states change
//   run_job(i) for i < n_jobs()        parallel, any order: encodes frozen pages, converts and stores rows
//   end_write()                        serial: storage of frozen pages is released
// Freezing happens only here, for pages that an earlier graph filled, never between a graph's attention and its
// end. Not thread-safe beyond that; owners lock (one lock per ggml buffer).
class KvTensor {
  public:
    struct Config {
        KvRole role = KvRole::key;
        std::int64_t n_cells = 0;  // per stream
        int n_stream = 1;
        int row_elements = 0;      // of one row, all heads
        const ColdFormat* format = nullptr;  // nullptr: f16, pages never freeze
        const kernels::KernelSet* kernels = nullptr;
        PageArena* arena = nullptr;          // shared by the tensors of a buffer
        WindowTracker* tracker = nullptr;    // shared by the tensors of a cache; null only when format is null
    };
    explicit KvTensor(const Config& config);  // throws Error for impossible values
    ~KvTensor();
    KvTensor(const KvTensor&) = delete;
    KvTensor& operator=(const KvTensor&) = delete;

    // Heads of a row, learned from the first attention node. Until known, a row counts as one head and nothing
    // freezes. Pages written so far are rearranged. False when another shape is already in use by cold pages or
    // shape.row_elements() does not match: the owner then pins.
    bool set_head_shape(HeadShape shape);
    bool head_shape_known() const noexcept { return shape_known_; }

    // --- graph writes -------------------------------------------------------------------------------------
    // One source row per cell, in order: fp32 or fp16 [n][row_elements] with row_stride_bytes between rows.
    struct RowSource {
        const void* data;
        std::ptrdiff_t row_stride_bytes;
        bool is_fp16;
    };
    // cells: global cell (stream * n_cells + cell) of each row; the last write of a repeated cell wins.
    void begin_write(std::span<const std::int64_t> cells, const RowSource& rows);
    int n_jobs() const noexcept;
    void run_job(int job) noexcept;
    void end_write() noexcept;

    // --- host access: byte ranges of the logical fp16 array [n_stream * n_cells][row_elements] -------------------
    void write_bytes(std::size_t offset, const void* data, std::size_t size);  // any alignment; freezes as it goes
    void fill_bytes(std::size_t offset, std::uint8_t value, std::size_t size);
    void read_bytes(std::size_t offset, void* data, std::size_t size) const;
    // Rows from another tensor (or this one) of equal row size; whole pages are cloned as they are, without
    // decoding. Global cells.
    void copy_rows(const KvTensor& from, std::int64_t from_cell, std::int64_t to_cell, std::int64_t n);
    // Applies fn(rows, n_rows, first_global_cell) to the decoded fp16 rows [64][row_elements] of a page and stores
    // the result in the page's present form (hot rows in place, cold pages re-encoded). For K-shift.
    template <typename Fn> void rewrite_page(int stream, std::int64_t page, Fn&& fn) {
        begin_rewrite(stream, page);
        fn(rewrite_rows_.data(), rows_in_page(page), stream * config_.n_cells + page * kPageTokens);
        end_rewrite(stream, page);
    }
    void clear() noexcept;  // every page becomes empty (pinned: rows become zero)

    // Materialises every row at base in ggml's layout [n_stream * n_cells][row_elements] and stays so for good.
    // base: the tensor's own address, reserved by the owner; pages of it that were never written read as zero.
    void pin(std::byte* base);
    bool pinned() const noexcept { return pinned_base_ != nullptr; }

    // --- reading ------------------------------------------------------------------------------------------
    PageTable pages(int stream) const noexcept;
    PageLayout layout() const noexcept { return layout_; }

    struct Memory {
        std::size_t hot = 0, cold = 0, overlay = 0, pinned = 0, bookkeeping = 0;  // bytes
        std::int64_t rows_written = 0;  // live rows
    };
    Memory memory() const noexcept;
    struct Counters {
        std::uint64_t freezes = 0, reencodes = 0, promotions = 0;
    };
    const Counters& counters() const noexcept { return counters_; }
    const Config& config() const noexcept { return config_; }

  private:
    void begin_rewrite(int stream, std::int64_t page);
    void end_rewrite(int stream, std::int64_t page);
    int rows_in_page(std::int64_t page) const noexcept;

    Config config_;
    PageLayout layout_;
    bool shape_known_ = false;
    std::int64_t pages_per_stream_ = 0;
    std::vector<Page> pages_;             // [n_stream][pages_per_stream_]
    std::vector<std::uint32_t> hot_list_; // indices of pages that may freeze or re-encode
    std::byte* pinned_base_ = nullptr;
    std::vector<fp16_t> rewrite_rows_;
    Counters counters_;
    struct Jobs;
    std::unique_ptr<Jobs> jobs_;
};

}  // namespace mixed_kv
