#include <algorithm>
#include <bit>
#include <cstring>
#include <new>
#include <utility>
#include <vector>

#include "cache/kv_work.h"
#include "cache/overlay.h"
#include "cache/row_classes.h"
#include "kernels/contract.h"
#include "mixed_kv/error.h"
#include "mixed_kv/kv_tensor.h"
#include "mixed_kv/page_arena.h"
#include "mixed_kv/window_tracker.h"

// Rows becoming blocks, once, and blocks with few rows left giving these up.
namespace mixed_kv {

using cache::for_each_cell;
using cache::overlay_index;

namespace {

// Values of one encode job: about 20 us of work.
constexpr int kValuesPerJob = 16 * 1024;

}  // namespace

// Of these exact rows, sets that may share a block and are worth one.
cache::RowClasses KvTensor::classes_of(const Page& page, std::uint64_t cells, int min_rows) const noexcept {
    cache::RowSizes sizes(cells);
    for (int head = 0; head < layout_.shape.n_head; ++head) {
        sizes.add_head(layout_.shape.head_dim, [&](int t) {
            std::ptrdiff_t stride = 0;
            const std::byte* row = row_target(page, t, stride);
            return reinterpret_cast<const fp16_t*>(row + head * stride);
        });
    }
    return sizes.classes(min_rows, layout_.role == KvRole::key);
}

// The same of rows [64][row_elements].
cache::RowClasses KvTensor::classes_of(const std::vector<fp16_t>& rows, std::uint64_t cells,
                                       int min_rows) const noexcept {
    cache::RowSizes sizes(cells);
    sizes.add_rows(layout_.shape.n_head, layout_.shape.head_dim, [&](int t) {
        return rows.data() + static_cast<std::ptrdiff_t>(t) * config_.row_elements;
    });
    return sizes.classes(min_rows, layout_.role == KvRole::key);
}

// Blocks with no more rows than their bytes would hold in FP16 give these up.
void KvTensor::retire_small_blocks(const Page& page, Change& change) const noexcept {
    for (int i = 0; i < page.n_blocks; ++i) {
        const PageBlock& block = page.block(i);
        const int live =
            block.users != nullptr ? static_cast<int>(block.users[1]) : std::popcount(block.cells);
        if (live <= rows_worth(bytes_of(block))) change.retire |= 1u << i;
    }
}

KvTensor::Change KvTensor::judge(std::uint32_t index) {
    const Page& page = pages_[index];
    Change change;
    if (page.state != PageState::hot && page.state != PageState::cold) {
        change.drop = true;
        return change;
    }
    if (touched_[index] != 0) return change;
    retire_small_blocks(page, change);
    if (has_ladder()) {  // rows become blocks when memory asks for it
        change.drop = change.retire == 0;
        return change;
    }

    const auto stream = static_cast<int>(index / pages_per_stream_);
    const std::int64_t in_stream = index % pages_per_stream_;
    const std::uint64_t valid = valid_cells(index);
    // Cells that were zeroed have no row to encode and must go on reading as zero.
    const std::uint64_t exact = page.written & (page.state == PageState::hot ? valid : page.overlay);
    const std::uint64_t fresh = exact & ~page.settled & ~config_.tracker->sink_cells(stream, in_stream);
    const bool is_full = page.state == PageState::cold || page.written == valid;
    const int block_rows = rows_worth(cold_bytes());
    if (std::popcount(fresh) <= block_rows || (flags_[index] & kRefused) != 0) {
        change.drop = is_full && change.retire == 0;
        return change;
    }
    if (!is_full || (config_.tracker->window_cells(stream, in_stream) & valid) != 0) return change;

    change.format = layout_.format_index;
    change.new_blocks = classes_of(page, fresh, block_rows + 1);
    const int room = Page::kMaxBlocks - page.n_blocks + std::popcount(change.retire);
    change.new_blocks.n = std::min(change.new_blocks.n, room);
    const std::size_t before = page.state == PageState::hot ? hot_bytes() : overlay_bytes(exact);
    const std::size_t after = static_cast<std::size_t>(change.new_blocks.n) * cold_bytes() +
                              overlay_bytes(exact & ~change.new_blocks.all());
    if (change.new_blocks.n == 0 || after >= before) {
        change.new_blocks.n = 0;
        flags_[index] |= kRefused;
        change.drop = change.retire == 0;
    }
    return change;
}

// Reserves storage for the pages that can change now. Freezing saves memory later but needs some first: when
// the arena refuses, it waits.
void KvTensor::plan_freezes() {
    if (layout_.format == nullptr || !shape_known_) return;
    try {
        for (std::size_t i = 0; i < candidates_.size();) {
            const std::uint32_t index = candidates_[i];
            const Change change = judge(index);
            if (change.any() && !plan_freeze(index, change)) break;
            if (change.drop) {
                flags_[index] &= static_cast<std::uint8_t>(~kListed);
                candidates_[i] = candidates_.back();
                candidates_.pop_back();
            } else {
                ++i;
            }
        }
        lay_out_encodes();
    } catch (const std::bad_alloc&) {  // records, not pages
        forget_freezes();
    }
}

// Once it is known which pages change.
void KvTensor::lay_out_encodes() {
    Work& work = *work_;
    const int heads_per_job = std::max(1, kValuesPerJob / (kPageTokens * layout_.shape.head_dim));
    std::size_t floats = 0;
    for (std::size_t f = 0; f < work.freezes.size(); ++f) {
        const Work::Freeze& freeze = work.freezes[f];
        if (freeze.encoded) continue;
        for (int block = freeze.n_kept; block < freeze.after.n_blocks; ++block) {
            for (int head = 0; head < layout_.shape.n_head; head += heads_per_job) {
                const int n = std::min(heads_per_job, layout_.shape.n_head - head);
                work.encodes.push_back({static_cast<std::uint32_t>(f), block, head, n, floats, 0});
                if (freeze.before.state == PageState::cold && !freeze.is_step) floats += scratch_floats();
            }
        }
    }
    work.floats.resize(floats);
}

void KvTensor::forget_freezes() noexcept {
    Work& work = *work_;
    for (std::size_t f = 0; f < work.freezes.size(); ++f) {
        if (work.freezes[f].encoded) flags_[work.freezes[f].page] |= kSuspect;
        release_planned(f);
    }
    work.freezes.clear();
    work.encodes.clear();
}

// Storage that only the planned state has.
void KvTensor::release_planned(std::size_t f) noexcept {
    Work::Freeze& freeze = work_->freezes[f];
    Page& after = freeze.after;
    if (after.state == PageState::hot) give(after.data, hot_bytes());
    if (after.state != PageState::cold) return;
    for (int i = freeze.n_kept; i < after.n_blocks; ++i) give(after.block(i).data, bytes_of(after.block(i)));
    give(reinterpret_cast<std::byte*>(after.overlay_rows), overlay_bytes(after.overlay));
    delete[] after.more;
}

// False when memory is short. rows: of the whole page, [64][row_elements], where they are known already.
bool KvTensor::plan_freeze(std::uint32_t index, const Change& change, std::vector<fp16_t> rows) {
    Work& work = *work_;
    const Page& page = pages_[index];
    work.freezes.emplace_back();
    Work::Freeze& freeze = work.freezes.back();
    freeze.page = index;
    freeze.is_step = change.is_step;
    freeze.rows = std::move(rows);
    freeze.before = freeze.after = page;
    if (page.shift_groups != 0) freeze.shift_before = shifts_[index];
    Page& after = freeze.after;
    after.n_blocks = 0;
    after.more = nullptr;
    after.overlay = 0;
    after.overlay_rows = nullptr;
    after.data = nullptr;
    try {
        const int n_kept = page.n_blocks - std::popcount(change.retire);
        const int n_blocks = n_kept + change.new_blocks.n;
        if (n_blocks > 1) after.more = new PageBlock[Page::kMaxBlocks - 1];
        for (int i = 0; i < page.n_blocks; ++i) {
            if ((change.retire >> i & 1) != 0) {
                freeze.gone[freeze.n_retired++] = page.block(i);
                freeze.retired |= page.block(i).cells;
            } else {
                after.block(after.n_blocks++) = page.block(i);
            }
        }
        freeze.n_kept = n_kept;
        after.settled |= freeze.retired | change.new_blocks.all();
        if (n_blocks == 0) {
            after.state = PageState::hot;
            after.shift_groups = 0;
            after.data = allocate_hot();
        } else {
            after.state = PageState::cold;
            for (int i = 0; i < change.new_blocks.n; ++i) {
                PageBlock& block = after.block(after.n_blocks);
                block = {};
                block.cells = change.new_blocks.cells[i];
                block.format = static_cast<std::uint8_t>(change.format);
                const std::size_t bytes = bytes_in(change.format);
                block.head_bytes =
                    static_cast<std::uint32_t>(bytes / static_cast<std::size_t>(layout_.shape.n_head));
                block.data = take(bytes);
                ++after.n_blocks;
            }
            const std::uint64_t exact = page.state == PageState::hot ? page.written : page.overlay;
            const std::uint64_t overlay = (exact | freeze.retired) & ~change.new_blocks.all();
            after.overlay_rows = allocate_overlay(overlay);
            after.overlay = overlay;
        }
        if (freeze.retired != 0 && freeze.rows.empty()) {
            freeze.rows.resize(hot_bytes() / sizeof(fp16_t));
            std::vector<float> scratch(scratch_floats());
            decode_rows(index, 0, kPageTokens, freeze.rows.data(), scratch.data());
        }
        if ((flags_[index] & kSuspect) == 0 || change.new_blocks.n == 0) return true;
        // Attention is planned on the page states that begin_write() leaves, so a page must not turn out to
        // be unfit in a job: try now.
        if (encodes_now(work.freezes.size() - 1)) {
            freeze.encoded = true;
        } else {
            flags_[index] |= kRefused;
            release_planned(work.freezes.size() - 1);
            work.freezes.pop_back();
        }
        flags_[index] &= static_cast<std::uint8_t>(~kSuspect);
        return true;
    } catch (const Error&) {
    } catch (const std::bad_alloc&) {
    }
    release_planned(work.freezes.size() - 1);
    work.freezes.pop_back();
    return false;
}

bool KvTensor::encodes_now(std::size_t f) {
    const Work::Freeze& freeze = work_->freezes[f];
    std::vector<float> scratch(scratch_floats());
    for (int block = freeze.n_kept; block < freeze.after.n_blocks; ++block) {
        for (int head = 0; head < layout_.shape.n_head; ++head) {
            if (!encode_head(f, block, head, scratch.data())) return false;
        }
    }
    return true;
}

void KvTensor::commit_freezes() noexcept {
    for (const auto& freeze : work_->freezes) {
        Page& page = pages_[freeze.page];
        page = freeze.after;
        const std::uint64_t exact = page.state == PageState::hot ? page.written : page.overlay;
        if (page.state == PageState::hot && exact != ~std::uint64_t{0})
            std::memset(page.data, 0, hot_bytes());
        copy_exact_rows(freeze.before, page, exact & ~freeze.retired);
        for_each_cell(freeze.retired & exact, [&](int t) {
            put_row(page, t, freeze.rows.data() + static_cast<std::ptrdiff_t>(t) * config_.row_elements);
        });
        // Exact rows are up to date, and what is encoded now is as it is now.
        if (page.shift_groups != 0) {
            std::uint64_t cells = freeze.retired;
            for (int i = freeze.n_kept; i < page.n_blocks; ++i) cells |= page.block(i).cells;
            forget_turns(freeze.page, cells);
        }
    }
}

// Encodes one head of a new block from the page's storage before the change. scratch: scratch_floats() when
// the page was cold. False: the codec refused, the block is as before.
bool KvTensor::encode_head(std::size_t f, int block_index, int head, float* scratch) noexcept {
    const Work::Freeze& freeze = work_->freezes[f];
    const HeadShape& shape = layout_.shape;
    const PageBlock& block = freeze.after.block(block_index);
    const auto* rows = reinterpret_cast<const fp16_t*>(layout_.head_data(freeze.before, head));
    std::ptrdiff_t stride = shape.head_dim;
    if (freeze.is_step && !freeze.rows.empty()) {
        rows = freeze.rows.data() + static_cast<std::ptrdiff_t>(head) * shape.head_dim;
        stride = config_.row_elements;
    } else if (freeze.before.state == PageState::cold) {
        auto* gathered = reinterpret_cast<fp16_t*>(scratch);
        std::memset(gathered, 0, static_cast<std::size_t>(kPageTokens) * layout_.head_bytes());
        for_each_cell(block.cells, [&](int t) {
            std::ptrdiff_t head_stride = 0;
            std::memcpy(gathered + static_cast<std::ptrdiff_t>(t) * shape.head_dim,
                        row_target(freeze.before, t, head_stride) + head * head_stride, layout_.head_bytes());
        });
        rows = gathered;
    }
    const auto& codec = config_.kernels->formats[block.format];
    return (layout_.role == KvRole::key ? codec.encode_key : codec.encode_value)(
        {rows, stride, shape.head_dim, block.cells,
         block.data + static_cast<std::size_t>(head) * block.head_bytes});
}

void KvTensor::run_encode(std::size_t job) noexcept {
    auto& encode = work_->encodes[job];
    for (int head = encode.first_head; head < encode.first_head + encode.n_heads; ++head) {
        if (!encode_head(encode.freeze, encode.block, head, work_->floats.data() + encode.scratch))
            encode.refused = 1;
    }
}

void KvTensor::finish_freezes() noexcept {
    Work& work = *work_;
    for (const auto& encode : work.encodes) work.freezes[encode.freeze].refused |= encode.refused;
    for (std::size_t f = 0; f < work.freezes.size(); ++f) {
        auto& freeze = work.freezes[f];
        Page& page = pages_[freeze.page];
        if (freeze.refused != 0) {  // only a codec that refuses ordinary values gets here
            release_planned(f);
            page = freeze.before;
            if (page.shift_groups != 0) shifts_[freeze.page] = freeze.shift_before;
            flags_[freeze.page] |= kRefused;
            continue;
        }
        Page& before = freeze.before;
        counters_.freezes += before.state == PageState::hot ? 1 : 0;
        if (freeze.is_step) {
            ++counters_.steps;
            counters_.steps_again += freeze.n_retired > 0 ? 1 : 0;
        }
        if (before.state == PageState::cold && !freeze.is_step) {
            counters_.reencodes += static_cast<std::uint64_t>(page.n_blocks - freeze.n_kept);
            counters_.promotions += page.state == PageState::hot ? 1 : 0;
        }
        if (!freeze.is_step) counters_.retired += static_cast<std::uint64_t>(freeze.n_retired);
        for (int i = 0; i < freeze.n_retired; ++i) release_block(freeze.gone[i]);
        before.n_blocks = 0;
        release_storage(before);
    }
    work.freezes.clear();
    work.encodes.clear();
}

}  // namespace mixed_kv
