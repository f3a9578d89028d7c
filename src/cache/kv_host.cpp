#include <algorithm>
#include <cstring>
#include <vector>

#include "cache/kv_work.h"
#include "cache/overlay.h"
#include "cache/restore.h"
#include "cache/row_values.h"
#include "mixed_kv/error.h"
#include "mixed_kv/kv_tensor.h"
#include "mixed_kv/page_arena.h"
#include "mixed_kv/window_tracker.h"

// Byte ranges of the logical array, as a host reads and writes tensors: state save and restore, clears.
namespace mixed_kv {

using cache::for_each_cell;

// What a host write stores: size bytes from data, or one value throughout.
struct KvTensor::Bytes {
    const std::byte* data;
    std::uint8_t value;

    void copy_to(std::byte* to, std::size_t at, std::size_t size) const noexcept {
        if (data != nullptr) {
            std::memcpy(to, data + at, size);
        } else {
            std::memset(to, value, size);
        }
    }
};

namespace {

// Cells first .. first + n - 1.
std::uint64_t cell_range(int first, int n) noexcept {
    return n <= 0 ? 0 : (n == kPageTokens ? ~std::uint64_t{0} : (std::uint64_t{1} << n) - 1) << first;
}

}  // namespace

// Calls fn(page index, byte in page, byte in range, bytes) for the part of a byte range in each page.
template <typename Fn>
void KvTensor::each_page(std::size_t offset, std::size_t size, Fn&& fn) const {
    const std::size_t row_bytes = layout_.row_bytes();
    for (std::size_t at = 0; at < size;) {
        const auto cell = static_cast<std::int64_t>((offset + at) / row_bytes);
        const std::uint32_t index = page_of(cell);
        const std::int64_t first_cell = cell - cell % config_.n_cells % kPageTokens;
        const std::size_t at_page = offset + at - static_cast<std::size_t>(first_cell) * row_bytes;
        const std::size_t page_bytes =
            static_cast<std::size_t>(rows_in_page(index % pages_per_stream_)) * row_bytes;
        const std::size_t n = std::min(size - at, page_bytes - at_page);
        fn(index, at_page, at, n);
        at += n;
    }
}

// Makes these cells' rows exact and writable in place. whole: those of them that will be overwritten
// completely; the others keep their present values until then.
void KvTensor::open_rows(std::uint32_t index, std::uint64_t cells, std::uint64_t whole) {
    Page& page = pages_[index];
    candidates_.reserve(candidates_.size() + 3);
    if (page.state == PageState::empty) {
        std::byte* hot = allocate_hot();
        std::memset(hot, 0, hot_bytes());
        page.state = PageState::hot;
        page.data = hot;
        return;
    }
    if (page.state != PageState::cold) return;
    const std::uint64_t kept = cells & ~whole & ~page.overlay;
    std::vector<fp16_t> rows;
    if (kept != 0) {
        rows.resize(hot_bytes() / sizeof(fp16_t));
        std::vector<float> scratch(scratch_floats());
        decode_rows(index, 0, kPageTokens, rows.data(), scratch.data());
    }
    const bool is_opened = promotes(index, cells);  // no row is left in a block
    if (is_opened) {
        promote(index, whole, allocate_hot());
    } else {
        fp16_t* overlay = overlay_fits(page, cells) ? nullptr : allocate_overlay(page.overlay | cells);
        grow_overlay(page, cells, overlay);
    }
    for_each_cell(kept, [&](int t) {
        put_row(page, t, rows.data() + static_cast<std::ptrdiff_t>(t) * config_.row_elements);
    });
    if (is_opened) return;
    drop_block_cells(index, cells);
    forget_turns(index, cells);
}

// Stores bytes first_byte .. first_byte + size of a page, as dense rows.
void KvTensor::write_page(std::uint32_t index, std::size_t first_byte, std::size_t size,
                          const Bytes& source) {
    if (size == 0) return;
    const std::size_t row_bytes = layout_.row_bytes(), head_bytes = layout_.head_bytes();
    const std::size_t end = first_byte + size;
    const auto first_row = static_cast<int>(first_byte / row_bytes);
    const auto last_row = static_cast<int>((end - 1) / row_bytes);
    const auto first_whole = static_cast<int>((first_byte + row_bytes - 1) / row_bytes);
    const auto end_whole = static_cast<int>(end / row_bytes);
    const std::uint64_t cells = cell_range(first_row, last_row - first_row + 1);
    open_rows(index, cells, cell_range(first_whole, end_whole - first_whole));
    const Page& page = pages_[index];
    bool suspect = false;
    for (int t = first_row; t <= last_row; ++t) {
        std::ptrdiff_t head_stride = 0;
        std::byte* row = row_target(page, t, head_stride);
        const std::size_t row_begin = static_cast<std::size_t>(t) * row_bytes;
        for (int head = 0; head < layout_.shape.n_head; ++head) {
            const std::size_t head_begin = row_begin + static_cast<std::size_t>(head) * head_bytes;
            const std::size_t from = std::max(first_byte, head_begin),
                              to = std::min(end, head_begin + head_bytes);
            if (from >= to) continue;
            std::byte* target = row + head * head_stride;
            source.copy_to(target + (from - head_begin), from - first_byte, to - from);
            suspect |=
                cache::has_large_value(reinterpret_cast<const fp16_t*>(target), layout_.shape.head_dim);
        }
    }
    if (page.state == PageState::pinned) {
        pages_[index].written |= cells;
        return;
    }
    note_written(index, cells);
    if (suspect) flags_[index] |= kSuspect;
}

// settled: those of the cells whose rows are not to be encoded again.
void KvTensor::write_page_rows(std::uint32_t index, int first, int n, const fp16_t* rows,
                               std::uint64_t settled) {
    write_page(index, static_cast<std::size_t>(first) * layout_.row_bytes(),
               static_cast<std::size_t>(n) * layout_.row_bytes(),
               {reinterpret_cast<const std::byte*>(rows), 0});
    if (!pinned()) pages_[index].settled |= settled;
}

// The format for host rows at these bytes: the widest that leaves everything within what is allowed.
// Negative: FP16.
int KvTensor::format_for_restore(std::size_t offset, std::size_t size) const noexcept {
    if (!has_ladder()) return layout_.format_index;
    std::size_t taken = page_bytes_;
    each_page(offset, size, [&](std::uint32_t index, std::size_t, std::size_t, std::size_t n) {
        if (n == hot_bytes()) taken -= std::min(taken, stored_bytes(pages_[index]));
    });
    const std::size_t n_pages = size / hot_bytes();
    if (taken + (n_pages + 2) * hot_bytes() <= allowance_.bytes) return -1;
    for (int rung = 1; rung < static_cast<int>(config_.ladder.size()); ++rung) {
        if (taken + n_pages * bytes_in(format_at(rung)) + 2 * hot_bytes() <= allowance_.bytes)
            return format_at(rung);
    }
    return format_at(static_cast<int>(config_.ladder.size()));
}

void KvTensor::write_bytes(std::size_t offset, const void* data, std::size_t size) {
    check_range("a write", offset, size);
    if (size == 0) return;
    if (pinned()) {
        each_page(offset, size, [&](std::uint32_t index, std::size_t at_page, std::size_t at, std::size_t n) {
            write_page(index, at_page, n, {static_cast<const std::byte*>(data) + at, 0});
        });
        return;
    }
    const std::size_t row_bytes = layout_.row_bytes();
    // A row counts with the write that brings its last byte, so that ranges in sequence are rows in sequence.
    const auto first_row = static_cast<std::int64_t>((offset + row_bytes - 1) / row_bytes);
    const auto first_done = static_cast<std::int64_t>(offset / row_bytes);
    const auto end_row = static_cast<std::int64_t>((offset + size) / row_bytes);
    const auto* bytes = static_cast<const std::byte*>(data);
    // Whole groups are encoded from where they are, without being stored first.
    const int format = format_for_restore(offset, size);
    const std::vector<std::int64_t> groups =
        note_restored(first_done, end_row - first_done, first_row, format >= 0);
    std::size_t done = 0;
    for (const std::int64_t group : groups) {
        const std::size_t at = static_cast<std::size_t>(group) * row_bytes - offset;
        store_bytes(offset + done, bytes + done, at - done);
        done = at + kPageTokens * row_bytes;
    }
    store_bytes(offset + done, bytes + done, size - done);
    encode_groups(groups, format, [&](std::int64_t group) {
        return reinterpret_cast<const fp16_t*>(bytes + static_cast<std::size_t>(group) * row_bytes - offset);
    });
    encode_stored_groups();
}

// Bytes of the logical array, as exact rows that are not to be encoded.
void KvTensor::store_bytes(std::size_t offset, const std::byte* data, std::size_t size) {
    each_page(offset, size, [&](std::uint32_t index, std::size_t at_page, std::size_t at, std::size_t n) {
        write_page(index, at_page, n, {data + at, 0});
        const auto first = static_cast<int>(at_page / layout_.row_bytes());
        const auto last = static_cast<int>((at_page + n - 1) / layout_.row_bytes());
        pages_[index].settled |= cell_range(first, last - first + 1);
        keep_allowance_now();
    });
}

// Zeroes part of a page. Rows that become zero as a whole are no longer written; a page without any is
// released.
void KvTensor::zero_page(std::uint32_t index, std::size_t first_byte, std::size_t size) {
    Page& page = pages_[index];
    if (page.state == PageState::empty) return;
    const std::size_t row_bytes = layout_.row_bytes();
    const std::size_t end = first_byte + size;
    const auto first_whole = static_cast<int>((first_byte + row_bytes - 1) / row_bytes);
    const auto end_whole = static_cast<int>(end / row_bytes);
    const std::uint64_t whole = cell_range(first_whole, end_whole - first_whole);
    if ((page.written & ~whole) == 0) {  // rows never written are zero already
        make_empty(index);
        return;
    }
    // Bytes of rows that hold something; the others would only come into being.
    for (auto t = static_cast<int>(first_byte / row_bytes); static_cast<std::size_t>(t) * row_bytes < end;
         ++t) {
        const std::uint64_t cell = std::uint64_t{1} << t;
        if ((page.written & cell) == 0) continue;
        const std::size_t row_begin = static_cast<std::size_t>(t) * row_bytes;
        const std::size_t from = std::max(first_byte, row_begin), to = std::min(end, row_begin + row_bytes);
        write_page(index, from, to - from, {nullptr, 0});
        if (!is_zero_row(page, t)) continue;
        page.written &= ~cell;  // also when its zeros came in pieces
        page.settled &= ~cell;
    }
    if (page.written == 0) make_empty(index);
}

bool KvTensor::is_zero_row(const Page& page, int token) const noexcept {
    std::ptrdiff_t head_stride = 0;
    const std::byte* row = row_target(page, token, head_stride);
    unsigned found = 0;
    for (int head = 0; head < layout_.shape.n_head; ++head) {
        const auto* values = reinterpret_cast<const fp16_t*>(row + head * head_stride);
        for (int i = 0; i < layout_.shape.head_dim; ++i) found |= values[i];
    }
    return found == 0;
}

void KvTensor::fill_bytes(std::size_t offset, std::uint8_t value, std::size_t size) {
    check_range("a fill", offset, size);
    if (pinned() && size != 0) {
        const auto n_rows = static_cast<std::size_t>(config_.n_cells * config_.n_stream);
        if (value == 0 && size == n_rows * layout_.row_bytes()) {
            clear();
        } else {
            std::memset(pinned_base_ + offset, value, size);
        }
        return;
    }
    each_page(offset, size, [&](std::uint32_t index, std::size_t at_page, std::size_t, std::size_t n) {
        if (value == 0) {
            zero_page(index, at_page, n);
        } else {
            write_page(index, at_page, n, {nullptr, value});
        }
        keep_allowance_now();
    });
}

void KvTensor::read_rows(std::int64_t first_cell, std::int64_t n, fp16_t* rows) const {
    const std::size_t row_bytes = layout_.row_bytes();
    check_range("a read", static_cast<std::size_t>(first_cell) * row_bytes,
                static_cast<std::size_t>(n) * row_bytes);
    std::vector<float> scratch;
    while (n > 0) {
        const std::uint32_t index = page_of(first_cell);
        const auto in_page = static_cast<int>(first_cell % config_.n_cells % kPageTokens);
        const auto count =
            static_cast<int>(std::min<std::int64_t>(n, rows_in_page(index % pages_per_stream_) - in_page));
        if (pages_[index].state == PageState::cold) scratch.resize(scratch_floats());
        decode_rows(index, in_page, count, rows, scratch.data());
        rows += static_cast<std::ptrdiff_t>(count) * config_.row_elements;
        first_cell += count;
        n -= count;
    }
}

void KvTensor::read_bytes(std::size_t offset, void* data, std::size_t size) const {
    check_range("a read", offset, size);
    if (pinned()) {
        std::memcpy(data, pinned_base_ + offset, size);
        return;
    }
    // Through a buffer: data may lie at any address, and the range may begin inside a value.
    const std::size_t row_bytes = layout_.row_bytes();
    std::vector<fp16_t> rows;
    each_page(offset, size, [&](std::uint32_t, std::size_t at_page, std::size_t at, std::size_t n) {
        const std::size_t skip = at_page % row_bytes;
        const std::size_t n_rows = (skip + n + row_bytes - 1) / row_bytes;
        rows.resize(n_rows * row_bytes / sizeof(fp16_t));
        read_rows(static_cast<std::int64_t>((offset + at) / row_bytes), static_cast<std::int64_t>(n_rows),
                  rows.data());
        std::memcpy(static_cast<std::byte*>(data) + at,
                    reinterpret_cast<const std::byte*>(rows.data()) + skip, n);
    });
}

}  // namespace mixed_kv
