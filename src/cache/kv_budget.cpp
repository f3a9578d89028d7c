#include <algorithm>
#include <bit>
#include <climits>
#include <new>
#include <utility>
#include <vector>

#include "cache/budget_shares.h"
#include "cache/kv_work.h"
#include "cache/overlay.h"
#include "cache/row_classes.h"
#include "cache/step_order.h"
#include "mixed_kv/kv_tensor.h"
#include "mixed_kv/window_tracker.h"

// A budget: pages stepping down a ladder of formats, when what they take is more than what is allowed.
namespace mixed_kv {

namespace {

// A graph of so few rows is a step of generation, which must not stall: pages step down one at a time, at
// every kPeriod-th such graph. A page of 64 new rows takes up to seven steps of others (docs/adr/0032).
constexpr std::int64_t kFewRows = 16;
constexpr unsigned kPeriod = 8;

// Of a shared block's bytes, those that each of its pages counts.
std::size_t part_of(const PageBlock& block, std::size_t bytes) {
    return block.users == nullptr ? bytes : bytes / block.users[0];
}

}  // namespace

int KvTensor::rung_of(int format) const noexcept {
    const ColdFormat* known = &cold_formats()[static_cast<std::size_t>(format)];
    const auto at = std::lower_bound(config_.ladder.begin(), config_.ladder.end(), known);
    return static_cast<int>(at - config_.ladder.begin()) + 1;
}

int KvTensor::format_at(int rung) const noexcept {
    return static_cast<int>(config_.ladder[static_cast<std::size_t>(rung - 1)] - cold_formats().data());
}

std::size_t KvTensor::stored_bytes(const Page& page) const noexcept {
    if (page.state == PageState::hot) return hot_bytes();
    if (page.state != PageState::cold) return 0;
    std::size_t bytes = overlay_bytes(page.overlay);
    for (int i = 0; i < page.n_blocks; ++i) bytes += part_of(page.block(i), bytes_of(page.block(i)));
    return bytes;
}

void KvTensor::set_allowance(const Allowance& allowance) noexcept {
    allowance_ = allowance;
    if (has_ladder() && page_bytes_ > allowance_.at_once) keep_allowance_now();
}

void KvTensor::keep_allowance_now() noexcept {
    if (has_ladder()) step_down(allowance_.bytes, INT_MAX);
}

void KvTensor::keep_allowance(std::int64_t n_rows, const Parallel& parallel) noexcept {
    if (!has_ladder()) return;
    // Counted also when nothing is to be done, or tensors would come to take their turns together.
    if (n_rows <= kFewRows) ++n_small_writes_;
    if (page_bytes_ <= allowance_.bytes) return;
    if (n_rows > kFewRows) {
        step_down(allowance_.bytes, INT_MAX, parallel);
        return;
    }
    step_down(allowance_.at_once, INT_MAX, parallel);
    if ((n_small_writes_ + allowance_.turn) % kPeriod == 0) step_down(allowance_.bytes, 1, parallel);
}

int KvTensor::step_down(std::size_t bytes, int most, const Parallel& parallel) noexcept {
    int n_steps = 0;
    if (!has_ladder() || !shape_known_ || pinned()) return n_steps;
    try {
        while (page_bytes_ > bytes && n_steps < most) {
            const int n =
                step_round(page_bytes_ - bytes, std::min(most - n_steps, cache::kPagesInStep), parallel);
            if (n == 0) break;
            n_steps += n;
        }
    } catch (const std::bad_alloc&) {  // records, not pages
        forget_freezes();
    }
    work_->shrink();
    return n_steps;
}

// The pages that can step down, as far as it is known without looking at their rows.
cache::StepOrder KvTensor::gather_steps() const {
    cache::StepOrder order(static_cast<int>(config_.ladder.size()));
    const int few = rows_worth(bytes_in(format_at(order.last_rung())));
    for (std::uint32_t index = 0; index < pages_.size(); ++index) {
        const Page& page = pages_[index];
        const bool is_hot = page.state == PageState::hot;
        if ((!is_hot && page.state != PageState::cold) || (flags_[index] & kRefused) != 0) continue;
        const auto stream = static_cast<int>(index / pages_per_stream_);
        const std::int64_t in_stream = index % pages_per_stream_;
        const std::uint64_t valid = valid_cells(index);
        const std::uint64_t exact = page.written & (is_hot ? valid : page.overlay);
        int rung = order.last_rung();
        for (int i = 0; i < page.n_blocks; ++i) rung = std::min(rung, rung_of(page.block(i).format));
        if (page.n_blocks > 0) order.note_in_use(rung);
        if (std::popcount(exact & ~config_.tracker->sink_cells(stream, in_stream)) > few) rung = 0;
        const bool is_held = (config_.tracker->window_cells(stream, in_stream) & valid) != 0 ||
                             (is_hot && page.written != valid);
        order.add({index, rung, is_held, config_.tracker->newest_order(stream, in_stream)});
    }
    return order;
}

// Lets pages step down until about `excess` bytes are free; at most `most`. Returns how many did.
int KvTensor::step_round(std::size_t excess, int most, const Parallel& parallel) {
    Work& work = *work_;
    cache::StepOrder order = gather_steps();
    std::size_t freed = 0;
    while (freed < excess && static_cast<int>(work.freezes.size()) < most) {
        const auto step = order.next();
        if (!step) break;
        if (!plan_step(*step, freed)) break;
    }
    const auto n = static_cast<int>(work.freezes.size());
    if (n == 0) return 0;
    lay_out_encodes();
    commit_freezes();
    const auto run = [this](std::size_t job) { run_encode(job); };
    if (parallel && work.encodes.size() > 3) {
        parallel(work.encodes.size(), run);
    } else {
        for (std::size_t job = 0; job < work.encodes.size(); ++job) run(job);
    }
    finish_freezes();
    return n;
}

// Plans what a page becomes on a rung: what it has on wider ones is encoded to that one's format, sinks and
// rows of other sizes stay in FP16. On a lower rung where that saves nothing. False when memory is short.
bool KvTensor::plan_step(const cache::Step& step, std::size_t& freed) {
    const Page& page = pages_[step.page];
    const bool is_hot = page.state == PageState::hot;
    const std::uint64_t sinks = config_.tracker->sink_cells(static_cast<int>(step.page / pages_per_stream_),
                                                            step.page % pages_per_stream_);
    const std::uint64_t exact = page.written & (is_hot ? valid_cells(step.page) : page.overlay);
    std::vector<fp16_t> rows;
    if (!is_hot) {
        rows.resize(hot_bytes() / sizeof(fp16_t));
        std::vector<float> scratch(scratch_floats());
        decode_rows(step.page, 0, kPageTokens, rows.data(), scratch.data());
    }
    const std::size_t before = stored_bytes(page);
    for (int rung = step.to_rung; rung <= static_cast<int>(config_.ladder.size()); ++rung) {
        Change change;
        change.is_step = true;
        change.format = format_at(rung);
        for (int i = 0; i < page.n_blocks; ++i) {
            if (rung_of(page.block(i).format) < rung) change.retire |= 1u << i;
        }
        if (change.retire == 0 && page.n_blocks == Page::kMaxBlocks)
            change.retire = (1u << page.n_blocks) - 1;
        std::uint64_t retired = 0;
        std::size_t after = 0;
        for (int i = 0; i < page.n_blocks; ++i) {
            const PageBlock& block = page.block(i);
            if ((change.retire >> i & 1) != 0) {
                retired |= block.cells;
            } else {
                after += part_of(block, bytes_of(block));
            }
        }
        const std::size_t bytes = bytes_in(change.format);
        const std::uint64_t cells = (exact | (retired & page.written)) & ~sinks;
        change.new_blocks = is_hot ? classes_of(page, cells, rows_worth(bytes) + 1)
                                   : classes_of(rows, cells, rows_worth(bytes) + 1);
        const int room = Page::kMaxBlocks - page.n_blocks + std::popcount(change.retire);
        change.new_blocks.n = std::min(change.new_blocks.n, room);
        if (change.new_blocks.n == 0) continue;
        const std::uint64_t stored = is_hot ? page.written : page.overlay | retired;
        after += static_cast<std::size_t>(change.new_blocks.n) * bytes +
                 overlay_bytes(stored & ~change.new_blocks.all());
        if (after >= before) continue;
        const std::size_t n_planned = work_->freezes.size();
        if (!plan_freeze(step.page, change, std::move(rows))) return false;
        if (work_->freezes.size() > n_planned) freed += before - after;
        return true;
    }
    flags_[step.page] |= kRefused;
    return true;
}

}  // namespace mixed_kv
