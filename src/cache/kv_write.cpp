#include <algorithm>
#include <cstring>
#include <new>
#include <string>

#include "cache/kv_work.h"
#include "cache/overlay.h"
#include "cache/restore.h"
#include "cache/row_values.h"
#include "kernels/contract.h"
#include "mixed_kv/error.h"
#include "mixed_kv/kv_tensor.h"
#include "mixed_kv/page_arena.h"

// The write path of a graph: begin_write(), its jobs, end_write().
namespace mixed_kv {

namespace {

// Values of one row-copy job: some microseconds of work, so that one row is one job and a prompt's rows
// spread over all threads.
constexpr std::size_t kValuesPerJob = 16 * 1024;
constexpr std::uint32_t kNoTarget = UINT32_MAX;

}  // namespace

void KvTensor::begin_write(std::span<const std::int64_t> cells, const RowSource& rows) {
    Work& work = *work_;
    const std::int64_t n_cells = config_.n_cells * config_.n_stream;
    for (const std::int64_t cell : cells) {
        if (cell < 0 || cell >= n_cells) {
            throw Error("KV tensor: a row for cell " + std::to_string(cell) + ", but there are " +
                        std::to_string(n_cells) + " cells");
        }
    }
    work.source = rows;
    work.rows_per_job =
        std::max<std::size_t>(1, kValuesPerJob / static_cast<std::size_t>(config_.row_elements));
    try {
        restore_.reset();
        gather_touches(cells);
        if (!pinned()) {
            reserve_touches();
            plan_freezes();
        }
    } catch (...) {
        abandon();
        throw;
    }
    if (!pinned()) commit_freezes();
    commit_touches();
    for (std::size_t i = 0; i < work.targets.size(); ++i) {
        auto& target = work.targets[i];
        if (target.page == kNoTarget) continue;
        const auto in_page = static_cast<int>(cells[i] % config_.n_cells % kPageTokens);
        target.row = row_target(pages_[target.page], in_page, target.head_stride_bytes);
    }
}

// Which pages get which cells; of several rows for one cell the last counts.
void KvTensor::gather_touches(std::span<const std::int64_t> cells) {
    Work& work = *work_;
    work.targets.assign(cells.size(), {});
    for (std::size_t i = cells.size(); i-- > 0;) {
        const std::uint32_t index = page_of(cells[i]);
        const std::uint64_t cell = std::uint64_t{1} << (cells[i] % config_.n_cells % kPageTokens);
        if (touched_[index] == 0) work.touches.push_back({index, 0, nullptr, nullptr});
        work.targets[i].page = (touched_[index] & cell) == 0 ? index : kNoTarget;
        touched_[index] |= cell;
    }
    for (auto& touch : work.touches) touch.cells = touched_[touch.page];
}

void KvTensor::reserve_touches() {
    Work& work = *work_;
    candidates_.reserve(candidates_.size() + 3 * work.touches.size());  // neighbours may share a block
    work.reserved.clear();
    work.reserved.reserve(work.touches.size());
    for (auto& touch : work.touches) {
        const Page& page = pages_[touch.page];
        if (page.state == PageState::empty || promotes(touch.page, touch.cells)) {
            touch.hot = allocate_hot();
            work.reserved.push_back({touch.hot, hot_bytes()});
        } else if (page.state == PageState::cold && !overlay_fits(page, touch.cells)) {
            touch.overlay = allocate_overlay(page.overlay | touch.cells);
            work.reserved.push_back(
                {reinterpret_cast<std::byte*>(touch.overlay), overlay_bytes(page.overlay | touch.cells)});
        }
    }
}

// Undoes what begin_write() did before it failed.
void KvTensor::abandon() noexcept {
    Work& work = *work_;
    for (const auto& block : work.reserved) give(block.data, block.bytes);
    for (const auto& touch : work.touches) touched_[touch.page] = 0;
    work.reserved.clear();
    work.touches.clear();
    work.targets.clear();
}

void KvTensor::commit_touches() noexcept {
    for (const auto& touch : work_->touches) {
        Page& page = pages_[touch.page];
        if (page.state == PageState::empty) {
            page.state = PageState::hot;
            page.data = touch.hot;
            // Cells that nobody wrote read as zero, and kernels read whole pages.
            if (touch.cells != ~std::uint64_t{0}) std::memset(page.data, 0, hot_bytes());
        } else if (page.state == PageState::cold && touch.hot != nullptr) {
            promote(touch.page, touch.cells, touch.hot);
        } else if (page.state == PageState::cold) {
            grow_overlay(page, touch.cells, touch.overlay);
            drop_block_cells(touch.page, touch.cells);
            forget_turns(touch.page, touch.cells);
        }
        if (pinned()) {
            page.written |= touch.cells;
        } else {
            note_written(touch.page, touch.cells);
        }
    }
    work_->reserved.clear();
}

int KvTensor::n_jobs() const noexcept {
    const Work& work = *work_;
    const std::size_t copies = (work.targets.size() + work.rows_per_job - 1) / work.rows_per_job;
    return static_cast<int>(work.encodes.size() + copies);
}

// Encoding comes first: those are the longer jobs.
void KvTensor::run_job(int job) noexcept {
    Work& work = *work_;
    const auto index = static_cast<std::size_t>(job);
    if (index < work.encodes.size()) {
        run_encode(index);
        return;
    }
    const std::size_t first = (index - work.encodes.size()) * work.rows_per_job;
    const std::size_t end = std::min(work.targets.size(), first + work.rows_per_job);
    for (std::size_t row = first; row < end; ++row) copy_source_row(row);
}

void KvTensor::copy_source_row(std::size_t row) noexcept {
    Work& work = *work_;
    auto& target = work.targets[row];
    if (target.row == nullptr) return;
    const auto* from = static_cast<const std::byte*>(work.source.data) +
                       static_cast<std::ptrdiff_t>(row) * work.source.row_stride_bytes;
    // A row is one piece unless the heads of a page lie apart.
    const bool whole = target.head_stride_bytes == static_cast<std::ptrdiff_t>(layout_.head_bytes());
    const int pieces = whole ? 1 : layout_.shape.n_head;
    const std::ptrdiff_t n = config_.row_elements / pieces;
    bool suspect = false;
    for (int piece = 0; piece < pieces; ++piece) {
        auto* to = reinterpret_cast<fp16_t*>(target.row + piece * target.head_stride_bytes);
        if (work.source.is_fp16) {
            std::memcpy(to, from + piece * n * static_cast<std::ptrdiff_t>(sizeof(fp16_t)),
                        static_cast<std::size_t>(n) * sizeof(fp16_t));
        } else {
            config_.kernels->fp32_to_fp16(reinterpret_cast<const float*>(from) + piece * n, to, n);
        }
        suspect |= cache::has_large_value(to, n);
    }
    target.suspect = suspect ? 1 : 0;
}

void KvTensor::end_write() noexcept {
    Work& work = *work_;
    for (const auto& target : work.targets) {
        if (target.suspect != 0) flags_[target.page] |= kSuspect;
    }
    finish_freezes();
    for (const auto& touch : work.touches) touched_[touch.page] = 0;
    work.touches.clear();
    work.targets.clear();
    work.shrink();
}

}  // namespace mixed_kv
