#include <algorithm>
#include <bit>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "cache/overlay.h"
#include "cache/restore.h"
#include "cache/row_classes.h"
#include "kernels/contract.h"
#include "mixed_kv/error.h"
#include "mixed_kv/page_arena.h"
#include "mixed_kv/window_tracker.h"

// Restored rows becoming blocks. Page borders do not matter to them: what a group of 64 rows shares is that
// they came one after the other. Rows that are in no full group, or at cells that do not follow each other,
// stay exact.
namespace mixed_kv {

using cache::for_each_cell;

namespace {

// Groups that are encoded together: enough for all threads, few enough that what is reserved for them beside
// the cache is small.
constexpr std::size_t kBatch = 64;
constexpr std::size_t kBatchInBudget = 16;

}  // namespace

// Tells the tracker, and returns the groups that this write brings whole (rows first_whole .. are complete in
// it) and that can be encoded now. Others that it completes are kept for encode_stored_groups().
std::vector<std::int64_t> KvTensor::note_restored(std::int64_t first_cell, std::int64_t n_rows,
                                                  std::int64_t first_whole, bool encodes) {
    std::vector<std::int64_t> direct;
    const bool continues =
        config_.tracker != nullptr && config_.tracker->on_restore(first_cell, n_rows, this);
    if (layout_.format == nullptr || !shape_known_ || !encodes) {
        if (has_ladder()) restore_.reset();
        return direct;
    }
    if (!continues || restore_ == nullptr) restore_ = std::make_unique<Restore>();
    Restore& restore = *restore_;
    std::vector<std::int64_t> full = std::move(restore.groups);
    restore.groups.clear();
    for (std::int64_t cell = first_cell; cell < first_cell + n_rows; ++cell) {
        if (cell % config_.n_cells == 0) restore.n_rows = 0;  // another stream
        const std::int64_t in_group = restore.n_rows++ % kPageTokens;
        if (in_group == 0) {
            restore.group_first = cell;
            restore.is_contiguous = cell % config_.n_cells + kPageTokens <= config_.n_cells;
        }
        restore.is_contiguous = restore.is_contiguous && cell == restore.group_first + in_group;
        if (in_group == kPageTokens - 1 && restore.is_contiguous) full.push_back(restore.group_first);
    }
    for (const std::int64_t group : full) {
        const bool is_whole = group >= first_whole && group + kPageTokens <= first_cell + n_rows;
        if (is_whole && !is_in_window(group)) {
            direct.push_back(group);
        } else if (!has_ladder()) {  // else they step down with their pages
            restore.groups.push_back(group);
        }
    }
    return direct;
}

// Whether one of the 64 cells from here on is in the window.
bool KvTensor::is_in_window(std::int64_t first_cell) const noexcept {
    const auto stream = static_cast<int>(first_cell / config_.n_cells);
    const std::int64_t page = first_cell % config_.n_cells / kPageTokens;
    const auto at = static_cast<int>(first_cell % config_.n_cells % kPageTokens);
    std::uint64_t window = config_.tracker->window_cells(stream, page) >> at;
    if (at != 0) window |= config_.tracker->window_cells(stream, page + 1) << (kPageTokens - at);
    return window != 0;
}

// Groups whose rows came in several writes, or before they had left the window.
void KvTensor::encode_stored_groups() {
    if (restore_ == nullptr) return;
    std::vector<std::int64_t> ready;
    std::vector<fp16_t> rows;
    auto& groups = restore_->groups;
    const auto waits = [&](std::int64_t group) { return is_in_window(group); };
    const auto middle = std::stable_partition(groups.begin(), groups.end(), waits);
    ready.assign(middle, groups.end());
    groups.erase(middle, groups.end());
    const auto group_elements = static_cast<std::size_t>(kPageTokens * config_.row_elements);
    for (std::size_t first = 0; first < ready.size(); first += kBatch) {
        const std::vector<std::int64_t> batch(
            ready.begin() + static_cast<std::ptrdiff_t>(first),
            ready.begin() + static_cast<std::ptrdiff_t>(std::min(ready.size(), first + kBatch)));
        rows.resize(batch.size() * group_elements);
        for (std::size_t i = 0; i < batch.size(); ++i)
            read_rows(batch[i], kPageTokens, rows.data() + i * group_elements);
        encode_groups(batch, layout_.format_index, [&](std::int64_t group) {
            const auto i = std::find(batch.begin(), batch.end(), group) - batch.begin();
            return rows.data() + static_cast<std::size_t>(i) * group_elements;
        });
    }
}

// rows_of(group): [64][row_elements], at any address. Groups that cannot be encoded are stored.
void KvTensor::encode_groups(const std::vector<std::int64_t>& groups, int format,
                             const RowsOfGroup& rows_of) {
    if (groups.empty()) return;
    struct Group {
        std::int64_t first_cell = 0;
        const fp16_t* rows = nullptr;
        std::vector<fp16_t> copy;   // when rows lie at an odd address
        std::byte* data = nullptr;  // of its block
        std::uint64_t counted = 0;  // rows of the block
        bool refused = false;
    };
    const HeadShape& shape = layout_.shape;
    const bool is_key = layout_.role == KvRole::key;
    const auto& codec = config_.kernels->formats[format];
    const std::size_t block_bytes = bytes_in(format), head_bytes = block_bytes / std::size_t(shape.n_head);
    const std::size_t at_once = has_ladder() ? kBatchInBudget : kBatch;
    for (std::size_t first = 0; first < groups.size(); first += at_once) {
        std::vector<Group> batch(std::min(groups.size() - first, at_once));
        const auto release = [&] {
            for (Group& group : batch) give(std::exchange(group.data, nullptr), block_bytes);
        };
        try {
            for (std::size_t i = 0; i < batch.size(); ++i) {
                batch[i].first_cell = groups[first + i];
                batch[i].rows = rows_of(groups[first + i]);
                batch[i].data = take(block_bytes);
                if (reinterpret_cast<std::uintptr_t>(batch[i].rows) % alignof(fp16_t) == 0) continue;
                batch[i].copy.resize(static_cast<std::size_t>(kPageTokens * config_.row_elements));
                std::memcpy(batch[i].copy.data(), batch[i].rows, kPageTokens * layout_.row_bytes());
                batch[i].rows = batch[i].copy.data();
            }
            const auto encode = [&](std::size_t i) {
                Group& group = batch[i];
                std::uint64_t sinks = 0;
                for (int t = 0; t < kPageTokens; ++t) {
                    const std::int64_t cell = group.first_cell + t;
                    const std::int64_t in_stream = cell % config_.n_cells;
                    const std::uint64_t bits = config_.tracker->sink_cells(
                        static_cast<int>(cell / config_.n_cells), in_stream / kPageTokens);
                    sinks |= (bits >> (in_stream % kPageTokens) & 1) << t;
                }
                cache::RowSizes sizes(~sinks);
                sizes.add_rows(shape.n_head, shape.head_dim, [&](int t) {
                    return group.rows + static_cast<std::ptrdiff_t>(t) * config_.row_elements;
                });
                const cache::RowClasses classes = sizes.classes(rows_worth(block_bytes) + 1, is_key);
                for (int c = 0; c < classes.n; ++c) {
                    if (std::popcount(classes.cells[c]) > std::popcount(group.counted))
                        group.counted = classes.cells[c];
                }
                group.refused = group.counted == 0;
                for (int head = 0; head < shape.n_head && !group.refused; ++head) {
                    group.refused = !(is_key ? codec.encode_key : codec.encode_value)(
                        {group.rows + head * shape.head_dim, config_.row_elements, shape.head_dim,
                         group.counted, group.data + static_cast<std::size_t>(head) * head_bytes});
                }
            };
            if (config_.parallel && batch.size() > 1) {
                config_.parallel(batch.size(), encode);
            } else {
                for (std::size_t i = 0; i < batch.size(); ++i) encode(i);
            }
            for (Group& group : batch) {
                const bool attached = !group.refused && attach_group(group.first_cell, group.counted, format,
                                                                     group.data, group.rows);
                if (!attached) {
                    store_bytes(static_cast<std::size_t>(group.first_cell) * layout_.row_bytes(),
                                reinterpret_cast<const std::byte*>(group.rows),
                                kPageTokens * layout_.row_bytes());
                }
            }
        } catch (...) {
            release();
            throw;
        }
        release();
        keep_allowance_now();
    }
}

// Puts a block into the page or the two pages of its cells; rows that it does not hold are stored exactly.
// False when a page has no room for another block: nothing has changed then.
// data becomes null as soon as a page has it.
bool KvTensor::attach_group(std::int64_t first_cell, std::uint64_t counted, int format, std::byte*& data,
                            const fp16_t* rows) {
    const auto at = static_cast<int>(first_cell % config_.n_cells % kPageTokens);
    const std::uint32_t first_page = page_of(first_cell);
    struct Part {
        std::uint32_t page;
        std::uint64_t cells, counted;
    };
    Part parts[2] = {{first_page, ~std::uint64_t{0} << at, counted << at}, {first_page + 1, 0, 0}};
    if (at != 0) {
        parts[1].cells = ~std::uint64_t{0} >> (kPageTokens - at);
        parts[1].counted = counted >> (kPageTokens - at);
    }
    for (const Part& part : parts) {
        if (part.cells == 0) continue;
        const Page& page = pages_[part.page];
        int n_left = 0;
        for (int i = 0; i < page.n_blocks; ++i) n_left += (page.block(i).cells & ~part.cells) != 0 ? 1 : 0;
        if (n_left == Page::kMaxBlocks) return false;
    }
    PageBlock block;
    block.data = data;
    block.rotation = static_cast<std::uint8_t>(at);
    block.format = static_cast<std::uint8_t>(format);
    block.head_bytes = static_cast<std::uint32_t>(bytes_in(format) / std::size_t(layout_.shape.n_head));
    std::unique_ptr<std::uint32_t[]> users;
    if (parts[0].counted != 0 && parts[1].counted != 0) users.reset(new std::uint32_t[2]{});
    block.users = users.get();
    for (const Part& part : parts) {
        if (part.cells == 0) continue;
        block.cells = part.counted;
        attach_block(part.page, block, part.cells & ~part.counted, rows);
        if (part.counted == 0) continue;
        data = nullptr;  // a page has it
        users.release();
    }
    ++counters_.freezes;
    return true;
}

// block.cells may be empty. rows: [64][row_elements] of the block.
void KvTensor::attach_block(std::uint32_t index, const PageBlock& block, std::uint64_t exact,
                            const fp16_t* rows) {
    Page& page = pages_[index];
    const std::uint64_t cells = block.cells | exact;
    candidates_.reserve(candidates_.size() + 3);
    if (block.cells == 0) {
        open_rows(index, exact, exact);
    } else {
        const std::uint64_t others =
            page.state == PageState::hot ? page.written & ~cells : page.overlay & ~cells;
        Page after = page;
        after.state = PageState::cold;
        after.data = nullptr;
        after.overlay = others | exact;
        std::unique_ptr<PageBlock[]> more;
        if (page.n_blocks > 0) more = std::make_unique<PageBlock[]>(Page::kMaxBlocks - 1);
        after.overlay_rows = allocate_overlay(after.overlay);
        copy_exact_rows(page, after, others);
        if (page.state == PageState::hot) {
            give(page.data, hot_bytes());
        } else {
            give(reinterpret_cast<std::byte*>(page.overlay_rows), overlay_bytes(page.overlay));
        }
        page = after;
        drop_block_cells(index, cells);
        if (page.n_blocks == 1 && page.more == nullptr) page.more = more.release();
        page.block(page.n_blocks++) = block;
        if (block.users != nullptr) {
            ++block.users[0];
            block.users[1] += static_cast<std::uint32_t>(std::popcount(block.cells));
        }
    }
    forget_turns(index, cells);
    for_each_cell(exact, [&](int t) {
        put_row(page, t, rows + static_cast<std::ptrdiff_t>(block.row_of(t)) * config_.row_elements);
    });
    note_written(index, cells);
    page.settled |= cells;
}

}  // namespace mixed_kv
