#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "mixed_kv/page.h"

namespace mixed_kv {

namespace kernels {
struct KernelSet;
}
namespace cache {
struct RowClasses;
struct Step;
class StepOrder;
}  // namespace cache
class PageArena;
class WindowTracker;

// One layer's K or V: n_stream * n_cells rows of row_elements fp16 values, stored in pages.
//
// Writing has three steps, so that the owner can spread the work over its threads:
//   begin_write(cells)                 serial: freezes are decided, storage is reserved, page states change
//   run_job(i) for i < n_jobs()        parallel, any order: encodes frozen pages, converts and stores rows
//   end_write()                        serial: storage of frozen pages is released
// Freezing happens only here, for pages that an earlier graph filled, never between a graph's attention and
// its end; and in host writes, which happen between graphs. Not thread-safe beyond that; owners lock (one
// lock per ggml buffer). Const members may run in parallel with each other.
//
// A row is quantized once at the most. What it decodes to then stays, bit for bit, until somebody writes that
// row, whatever is written, removed, copied or shifted around it (docs/adr/0022-a-row-is-rounded-once.md):
//   - A page freezes when every cell of it is written, none is in the tracker's window and the write at hand
//     leaves it alone. Sinks, and rows far larger than the others, become overlay rows.
//   - Blocks never change. A row written into a cold page becomes an overlay row. When no cell of the page is
//   in
//     the window and overlay rows that were never encoded are worth a block, they get one of their own.
//   - A block that holds no more rows than its bytes would in FP16 gives them to the overlay as they decode,
//   and
//     they stay there. A page without blocks is hot again.
//   - Rows that a host writes (a restored state) are encoded by 64 in the order in which they come, wherever
//     page borders are, so that a state that is saved and restored again finds its codes again.
//
// With a ladder of formats (Config::ladder) nothing freezes by itself: rows stay in FP16 until step_down() is
// asked to make room. Pages then step down the ladder, the widest first and of these the oldest; a page that
// is in blocks already is decoded and encoded once more (docs/adr/0032-a-budget-of-memory.md).
//
// When the arena refuses memory, what was asked for throws Error and the tensor is as before (host access: as
// after the pages done so far). Freezing then waits.
class KvTensor {
  public:
    // Calls job(i) for i = 0 .. n - 1, on any threads, and returns when all have.
    using Parallel = std::function<void(std::size_t n, const std::function<void(std::size_t)>& job)>;
    struct Config {
        KvRole role = KvRole::key;
        std::int64_t n_cells = 0;  // per stream
        int n_stream = 1;
        int row_elements = 0;                // of one row, all heads
        const ColdFormat* format = nullptr;  // nullptr: f16, pages never freeze
        const kernels::KernelSet* kernels = nullptr;
        PageArena* arena = nullptr;        // shared by the tensors of a buffer; outlives them
        WindowTracker* tracker = nullptr;  // shared by the tensors of a cache; null only when format is null
        Parallel parallel = {};            // for host writes; empty: the calling thread does all
        // Formats that pages step down to, each narrower than the one before; the first is `format`. Empty:
        // pages freeze to `format` when they leave the window.
        std::vector<const ColdFormat*> ladder = {};
    };
    explicit KvTensor(const Config& config);  // throws Error for impossible values
    ~KvTensor();
    KvTensor(const KvTensor&) = delete;
    KvTensor& operator=(const KvTensor&) = delete;

    // Heads of a row, learned from the first attention node. Until known, a row counts as one head and
    // nothing freezes. Pages written so far are rearranged. False when another shape is already in use by
    // cold pages or shape.row_elements() does not match: the owner then pins.
    bool set_head_shape(HeadShape shape);
    bool head_shape_known() const noexcept { return shape_known_; }

    // --- graph writes -------------------------------------------------------------------------------------
    // One source row per cell, in order: fp32 or fp16 [n][row_elements] with row_stride_bytes between rows.
    // The data must stay valid until end_write().
    struct RowSource {
        const void* data;
        std::ptrdiff_t row_stride_bytes;
        bool is_fp16;
    };
    // cells: global cell (stream * n_cells + cell) of each row; the last write of a repeated cell wins.
    // Throws Error for a cell that does not exist. Call the tracker's on_write() first. Every begin_write()
    // that returns must be followed by all its jobs and end_write().
    void begin_write(std::span<const std::int64_t> cells, const RowSource& rows);
    int n_jobs() const noexcept;
    void run_job(int job) noexcept;
    void end_write() noexcept;

    // --- host access: byte ranges of the logical fp16 array [n_stream * n_cells][row_elements]
    // ------------------- Ranges beyond the end throw Error. Any alignment.
    void write_bytes(std::size_t offset, const void* data,
                     std::size_t size);  // encodes as it goes; on_restore()
    void fill_bytes(std::size_t offset, std::uint8_t value, std::size_t size);  // zero: releases what it can
    void read_bytes(std::size_t offset, void* data, std::size_t size) const;
    // Decoded rows (values in their own basis), dense [n][row_elements]. Global cells.
    void read_rows(std::int64_t first_cell, std::int64_t n, fp16_t* rows) const;
    // Rows from another tensor (or this one, overlapping as memmove does) of equal row size; whole pages are
    // cloned as they are, without decoding. Global cells. Calls on_copy() of a shared tracker.
    // Rows copied one by one are exact; those that were not encoded where they come from freeze with a later
    // write.
    void copy_rows(const KvTensor& from, std::int64_t from_cell, std::int64_t to_cell, std::int64_t n);
    void clear() noexcept;  // every page becomes empty (pinned: rows become zero)

    // --- K-shift, of keys that are not pinned -------------------------------------------------------------
    // plan_shift() reserves whatever may be refused and changes nothing; then commit_shift() cannot fail, or
    // abandon_shift() forgets the plan. Exact rows (hot, overlay) are turned in place and rounded to fp16, as
    // the host does. Blocks stay bit for bit and take note of their turn; a page that would have more than
    // PageShift::kMaxGroups groups becomes hot, its rows as they decode. Nothing else may happen in between.
    void plan_shift(const KeyShift& shift);
    void commit_shift() noexcept;
    void abandon_shift() noexcept;

    // --- a budget, with a ladder only ----------------------------------------------------------------------
    // What the pages of this tensor may take, in bytes. Host writes, copies and K-shifts keep to it by
    // themselves; after a graph's write keep_allowance() does. `at_once`: beyond this nothing waits. Between
    // the two, a graph of a few rows lets one page step down now and then, by turns: `turn` differs from
    // tensor to tensor, so that they do not all work at the same token.
    struct Allowance {
        std::size_t bytes = SIZE_MAX;
        std::size_t at_once = SIZE_MAX;
        unsigned turn = 0;
    };
    void set_allowance(const Allowance& allowance) noexcept;  // steps down at once
    const Allowance& allowance() const noexcept { return allowance_; }
    // After end_write() of n_rows rows and the attention that reads them.
    void keep_allowance(std::int64_t n_rows, const Parallel& parallel) noexcept;
    // Lets at most `most` pages step down until page_bytes() <= bytes. Returns how many did. Not between
    // begin_write() and end_write(). Memory that runs out ends it early; nothing is lost.
    int step_down(std::size_t bytes, int most, const Parallel& parallel = {}) noexcept;
    bool has_ladder() const noexcept { return !config_.ladder.empty(); }
    // Of the arena's blocks that this tensor holds.
    std::size_t page_bytes() const noexcept { return page_bytes_; }

    // Materialises every row at base in ggml's layout [n_stream * n_cells][row_elements] and stays so for
    // good. base: the tensor's own address, private anonymous memory reserved by the owner, all zero: pages
    // that were never written are not touched.
    void pin(std::byte* base);
    bool pinned() const noexcept { return pinned_base_ != nullptr; }

    // --- reading ------------------------------------------------------------------------------------------
    PageTable pages(int stream) const noexcept;
    PageLayout layout() const noexcept { return layout_; }

    struct Memory {
        // Bytes. pinned: resident 4 KiB units of the tensor's own address range, whoever wrote (or read)
        // them.
        std::size_t hot = 0, cold = 0, overlay = 0, pinned = 0, bookkeeping = 0;
        std::int64_t rows_written = 0;  // live rows, as far as written through this class
    };
    Memory memory() const noexcept;
    struct Counters {
        std::uint64_t freezes = 0;      // hot pages that became cold
        std::uint64_t reencodes = 0;    // further blocks, of rows written into cold pages
        std::uint64_t promotions = 0;   // cold pages that became hot
        std::uint64_t retired = 0;      // blocks whose last rows became exact
        std::uint64_t steps = 0;        // pages that stepped down, of them
        std::uint64_t steps_again = 0;  // those that were in blocks already
    };
    const Counters& counters() const noexcept { return counters_; }
    const Config& config() const noexcept { return config_; }

  private:
    struct Work;     // what begin_write plans and the jobs do
    struct Bytes;    // source of a host write
    struct Restore;  // rows that a host writes one after the other
    struct Change;   // what can become of a page
    enum PageFlag : std::uint8_t {
        kListed = 1,   // in candidates_
        kSuspect = 2,  // holds a value that the codec may refuse: try before freezing
        kRefused = 4,  // its rows cannot be encoded; not tried again until one is written
    };

    int rows_in_page(std::int64_t page) const noexcept;
    std::uint64_t valid_cells(std::uint32_t index) const noexcept;  // cells of the page that exist
    std::size_t hot_bytes() const noexcept { return layout_.row_bytes() * kPageTokens; }
    std::size_t cold_bytes() const noexcept {
        return layout_.block_bytes * std::size_t(layout_.shape.n_head);
    }
    std::size_t overlay_bytes(std::uint64_t cells) const noexcept;
    std::uint32_t page_of(std::int64_t global_cell) const noexcept;
    std::int64_t first_cell_of(std::uint32_t index) const noexcept;  // global
    void check_range(const char* what, std::size_t offset, std::size_t size) const;

    // Of a block, all heads: of this one, of one in a format (index in cold_formats()).
    std::size_t bytes_of(const PageBlock& block) const noexcept {
        return std::size_t(block.head_bytes) * std::size_t(layout_.shape.n_head);
    }
    std::size_t bytes_in(int format) const noexcept;
    // Rows in FP16 that take the memory of a block.
    int rows_worth(std::size_t block_bytes) const noexcept {
        return static_cast<int>((block_bytes + layout_.row_bytes() - 1) / layout_.row_bytes());
    }

    // The arena's blocks, counted.
    std::byte* take(std::size_t bytes);
    void give(std::byte* data, std::size_t bytes) noexcept;

    // Storage of one page.
    void release_storage(Page& page) noexcept;
    void release_block(const PageBlock& block) noexcept;
    void drop_block_cells(std::uint32_t index, std::uint64_t cells) noexcept;
    void make_empty(std::uint32_t index) noexcept;
    std::byte* allocate_hot();
    fp16_t* allocate_overlay(std::uint64_t cells);
    void list_candidate(std::uint32_t index) noexcept;  // candidates_ has room
    void note_written(std::uint32_t index, std::uint64_t cells) noexcept;
    bool promotes(std::uint32_t index, std::uint64_t cells) const noexcept;
    void promote(std::uint32_t index, std::uint64_t cells, std::byte* hot) noexcept;
    bool overlay_fits(const Page& page, std::uint64_t cells) const noexcept;
    void grow_overlay(Page& page, std::uint64_t cells, fp16_t* rows) noexcept;
    void copy_exact_rows(const Page& from, const Page& to, std::uint64_t cells) const noexcept;
    void put_row(const Page& page, int token, const fp16_t* row) const noexcept;
    std::byte* row_target(const Page& page, int token, std::ptrdiff_t& head_stride_bytes) const noexcept;
    void decode_rows(std::uint32_t index, int first, int n, fp16_t* rows, float* scratch) const noexcept;
    std::size_t scratch_floats() const noexcept;

    // Freezing (kv_freeze.cpp).
    Change judge(std::uint32_t index);
    void retire_small_blocks(const Page& page, Change& change) const noexcept;
    cache::RowClasses classes_of(const Page& page, std::uint64_t cells, int min_rows) const noexcept;
    cache::RowClasses classes_of(const std::vector<fp16_t>& rows, std::uint64_t cells,
                                 int min_rows) const noexcept;
    void plan_freezes();
    void lay_out_encodes();
    void forget_freezes() noexcept;
    bool plan_freeze(std::uint32_t index, const Change& change, std::vector<fp16_t> rows = {});
    bool encodes_now(std::size_t freeze);
    void release_planned(std::size_t freeze) noexcept;
    void commit_freezes() noexcept;
    void run_encode(std::size_t job) noexcept;
    bool encode_head(std::size_t freeze, int block, int head, float* scratch) noexcept;
    void finish_freezes() noexcept;
    static constexpr std::uint32_t kNoPage = UINT32_MAX;

    // Steps down the ladder (kv_budget.cpp).
    cache::StepOrder gather_steps() const;
    int step_round(std::size_t excess, int most, const Parallel& parallel);
    bool plan_step(const cache::Step& step, std::size_t& freed);
    int rung_of(int format) const noexcept;
    int format_at(int rung) const noexcept;
    std::size_t stored_bytes(const Page& page) const noexcept;
    void keep_allowance_now() noexcept;

    // Graph writes (kv_write.cpp).
    void gather_touches(std::span<const std::int64_t> cells);
    void reserve_touches();
    void commit_touches() noexcept;
    void abandon() noexcept;
    void copy_source_row(std::size_t row) noexcept;

    // Host access (kv_host.cpp, kv_copy.cpp).
    template <typename Fn>
    void each_page(std::size_t offset, std::size_t size, Fn&& fn) const;
    void open_rows(std::uint32_t index, std::uint64_t cells, std::uint64_t whole);
    void write_page(std::uint32_t index, std::size_t first_byte, std::size_t size, const Bytes& source);
    void write_page_rows(std::uint32_t index, int first, int n, const fp16_t* rows, std::uint64_t settled);
    void store_bytes(std::size_t offset, const std::byte* data, std::size_t size);
    void zero_page(std::uint32_t index, std::size_t first_byte, std::size_t size);
    bool is_zero_row(const Page& page, int token) const noexcept;
    // Restored rows in groups of 64 (kv_restore.cpp).
    using RowsOfGroup = std::function<const fp16_t*(std::int64_t first_cell)>;
    std::vector<std::int64_t> note_restored(std::int64_t first_cell, std::int64_t n_rows,
                                            std::int64_t first_whole, bool encodes);
    void encode_groups(const std::vector<std::int64_t>& groups, int format, const RowsOfGroup& rows_of);
    int format_for_restore(std::size_t offset, std::size_t size) const noexcept;
    void encode_stored_groups();
    bool is_in_window(std::int64_t first_cell) const noexcept;
    bool attach_group(std::int64_t first_cell, std::uint64_t counted, int format, std::byte*& data,
                      const fp16_t* rows);
    void attach_block(std::uint32_t index, const PageBlock& block, std::uint64_t exact, const fp16_t* rows);
    bool clone_page(const KvTensor& from, std::uint32_t from_index, std::uint32_t to_index);

    // K-shift (kv_shift.cpp).
    struct ShiftPlan;
    bool plan_groups(std::uint32_t index);
    bool turn_row(fp16_t* row, std::uint32_t kind) noexcept;
    struct Turned {
        bool any = false, has_large = false;
    };
    Turned turn_exact_rows(std::uint32_t index) noexcept;
    void make_hot(std::uint32_t index, std::byte* hot, fp16_t* rows, float* scratch) noexcept;
    const float* pending_turn(std::uint32_t index, int token) const noexcept;
    void forget_turns(std::uint32_t index, std::uint64_t cells) noexcept;

    Config config_;
    PageLayout layout_;
    bool shape_known_ = false;
    std::int64_t pages_per_stream_ = 0;
    std::vector<Page> pages_;                // [n_stream][pages_per_stream_]
    std::vector<std::uint8_t> flags_;        // PageFlag, per page
    std::vector<std::uint64_t> touched_;     // cells of the write at hand, per page; zero between writes
    std::vector<std::uint32_t> candidates_;  // pages that may freeze, get a block or give one up
    std::byte* pinned_base_ = nullptr;
    std::vector<PageShift> shifts_;  // [n_stream][pages_per_stream_]; empty: no page has any
    PendingTurns turns_;
    Counters counters_;
    std::size_t page_bytes_ = 0;
    Allowance allowance_;
    unsigned n_small_writes_ = 0;
    std::unique_ptr<Work> work_;
    std::unique_ptr<ShiftPlan> shift_plan_;
    std::unique_ptr<Restore> restore_;
};

}  // namespace mixed_kv
