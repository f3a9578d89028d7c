#include <algorithm>
#include <cstring>
#include <vector>

#include "cache/kv_work.h"
#include "cache/overlay.h"
#include "cache/restore.h"
#include "cache/row_values.h"
#include "kernels/contract.h"
#include "mixed_kv/error.h"
#include "mixed_kv/kv_tensor.h"
#include "mixed_kv/page_arena.h"
#include "mixed_kv/window_tracker.h"

// Whole rows moved between graphs: stream copies, pinning.
namespace mixed_kv {

using cache::for_each_cell;

// A page as it is, block and all. False when the pages are not of one kind.
bool KvTensor::clone_page(const KvTensor& from, std::uint32_t from_index, std::uint32_t to_index) {
    const Page& source = from.pages_[from_index];
    const bool same_shape = layout_.shape == from.layout_.shape && layout_.role == from.layout_.role;
    if (pinned() || from.pinned() || valid_cells(to_index) != from.valid_cells(from_index)) return false;
    if (source.state != PageState::empty && !same_shape) return false;
    const bool same_blocks = has_ladder() || layout_.block_bytes == from.layout_.block_bytes;
    if (source.state == PageState::cold && (!same_blocks || !shape_known_)) return false;
    // Groups name turns of their own tensor.
    if (source.shift_groups != 0 && &from != this) return false;
    Page copy = source;
    if (source.state == PageState::hot) {
        copy.data = allocate_hot();
        std::memcpy(copy.data, source.data, hot_bytes());
    } else if (source.state == PageState::cold) {
        copy.n_blocks = 0;
        copy.more = nullptr;
        copy.overlay_rows = nullptr;
        copy.overlay = 0;
        try {
            if (source.n_blocks > 1) copy.more = new PageBlock[Page::kMaxBlocks - 1];
            for (int i = 0; i < source.n_blocks; ++i) {
                PageBlock block = source.block(i);
                block.users = nullptr;
                block.data = take(bytes_of(block));
                std::memcpy(block.data, source.block(i).data, bytes_of(block));
                copy.block(copy.n_blocks++) = block;
            }
            copy.overlay_rows = allocate_overlay(source.overlay);
            copy.overlay = source.overlay;
        } catch (...) {
            release_storage(copy);
            throw;
        }
        copy_exact_rows(source, copy, source.overlay);
    }
    release_storage(pages_[to_index]);
    pages_[to_index] = copy;
    if (copy.shift_groups != 0) shifts_[to_index] = shifts_[from_index];
    flags_[to_index] &= kListed;
    if ((from.flags_[from_index] & (kSuspect | kRefused)) != 0) flags_[to_index] |= kSuspect;
    if (copy.state != PageState::empty) list_candidate(to_index);
    return true;
}

void KvTensor::copy_rows(const KvTensor& from, std::int64_t from_cell, std::int64_t to_cell, std::int64_t n) {
    if (from.config_.row_elements != config_.row_elements) {
        throw Error("KV tensor: rows of " + std::to_string(from.config_.row_elements) +
                    " values cannot be copied to rows of " + std::to_string(config_.row_elements));
    }
    const std::size_t row_bytes = layout_.row_bytes();
    from.check_range("a copy", static_cast<std::size_t>(from_cell) * row_bytes,
                     static_cast<std::size_t>(n) * row_bytes);
    check_range("a copy", static_cast<std::size_t>(to_cell) * row_bytes,
                static_cast<std::size_t>(n) * row_bytes);
    if (n == 0 || (&from == this && from_cell == to_cell)) return;
    if (config_.tracker != nullptr) {
        if (config_.tracker == from.config_.tracker) {
            config_.tracker->on_copy(from_cell, to_cell, n, this);
        } else {
            config_.tracker->on_restore(to_cell, n, this);
        }
    }
    // One page of the target at a time, in the order that reads every row before it is overwritten.
    const bool descending = &from == this && to_cell > from_cell;
    std::vector<fp16_t> rows;
    for (std::int64_t done = 0; done < n;) {
        const auto page_end = [&](const KvTensor& tensor, std::int64_t cell) {
            const std::int64_t in_stream = cell % tensor.config_.n_cells;
            return cell + tensor.rows_in_page(in_stream / kPageTokens) - in_stream % kPageTokens;
        };
        std::int64_t to = to_cell + done, count = 0;
        if (descending) {
            const std::int64_t last = to_cell + n - done - 1;
            to = std::max(to_cell, last - last % config_.n_cells % kPageTokens);
            count = last + 1 - to;
        } else {
            count = std::min(page_end(*this, to), to_cell + n) - to;
        }
        const std::int64_t source = from_cell + (to - to_cell);
        const std::uint32_t index = page_of(to);
        done += count;
        const bool whole_page =
            to % config_.n_cells % kPageTokens == 0 && to + count == page_end(*this, to) &&
            source % from.config_.n_cells % kPageTokens == 0 && source + count == page_end(from, source);
        keep_allowance_now();
        candidates_.reserve(candidates_.size() + 3);
        if (whole_page && clone_page(from, from.page_of(source), index)) continue;
        rows.resize(static_cast<std::size_t>(count * config_.row_elements));
        from.read_rows(source, count, rows.data());
        const auto in_page = static_cast<int>(to % config_.n_cells % kPageTokens);
        std::uint64_t settled = 0;
        for (std::int64_t i = 0; i < count; ++i) {
            const Page& page = from.pages_[from.page_of(source + i)];
            const auto cell = static_cast<int>((source + i) % from.config_.n_cells % kPageTokens);
            settled |= (page.settled >> cell & 1) << (in_page + i);
        }
        write_page_rows(index, in_page, static_cast<int>(count), rows.data(), settled);
    }
    keep_allowance_now();
}

void KvTensor::pin(std::byte* base) {
    if (pinned()) return;
    std::vector<float> scratch(scratch_floats());
    for (std::size_t i = 0; i < pages_.size(); ++i) {
        Page& page = pages_[i];
        const auto index = static_cast<std::uint32_t>(i);
        std::byte* rows = base + static_cast<std::size_t>(first_cell_of(index)) * layout_.row_bytes();
        if (page.state != PageState::empty) {
            decode_rows(index, 0, rows_in_page(index % pages_per_stream_), reinterpret_cast<fp16_t*>(rows),
                        scratch.data());
        }
        release_storage(page);
        const std::uint64_t written = page.written;
        page = {};
        page.state = PageState::pinned;
        page.written = written;
        page.data = rows;
        flags_[i] = 0;
    }
    candidates_.clear();
    restore_.reset();
    shifts_ = std::vector<PageShift>();
    turns_ = PendingTurns{};
    pinned_base_ = base;
}

}  // namespace mixed_kv
