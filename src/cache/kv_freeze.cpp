#include <algorithm>
#include <bit>
#include <cstring>
#include <new>
#include <utility>
#include <vector>

#include "cache/kv_work.h"
#include "cache/overlay.h"
#include "kernels/contract.h"
#include "mixed_kv/error.h"
#include "mixed_kv/kv_tensor.h"
#include "mixed_kv/page_arena.h"
#include "mixed_kv/window_tracker.h"

// Hot pages becoming cold, and cold pages being encoded anew.
namespace mixed_kv {

using cache::for_each_cell;
using cache::overlay_index;

namespace {

// Overlay rows outside the window at which a cold page is encoded anew: a quarter of the page, so that a row
// is encoded a bounded number of times however rows arrive.
constexpr int kReencodeRows = 16;
// Values of one encode job: about 20 us of work.
constexpr int kValuesPerJob = 16 * 1024;

}  // namespace

// keep: the overlay that the page would have. drop: nothing can come of this page until it is written again.
bool KvTensor::ready_to_freeze(std::uint32_t index, std::uint64_t& keep, bool& drop) const noexcept {
    const Page& page = pages_[index];
    drop = false;
    if (page.state != PageState::hot && page.state != PageState::cold) {
        drop = true;
        return false;
    }
    const auto stream = static_cast<int>(index / pages_per_stream_);
    const std::int64_t in_stream = index % pages_per_stream_;
    const std::uint64_t valid = valid_cells(index);
    const std::uint64_t sinks = config_.tracker->sink_cells(stream, in_stream) & valid;
    const bool waits = touched_[index] != 0 || (flags_[index] & kRefused) != 0;
    if (page.state == PageState::hot) {
        if (waits || page.written != valid) return false;
        if ((config_.tracker->window_cells(stream, in_stream) & valid) != 0) return false;
        keep = sinks;
        return cold_bytes() + overlay_bytes(keep) < hot_bytes();
    }
    drop = (page.overlay & ~sinks) == 0;
    if (drop || waits) return false;
    // Cells that were zeroed have no row to encode and must go on reading as zero.
    const std::uint64_t window = config_.tracker->window_cells(stream, in_stream);
    keep = page.overlay & (sinks | window | ~page.written);
    return std::popcount(page.overlay & ~keep) >= kReencodeRows;
}

// Reserves storage for the pages that can freeze now. Freezing saves memory later but needs some first: when
// the arena refuses, it waits.
void KvTensor::plan_freezes() {
    Work& work = *work_;
    if (layout_.format == nullptr || !shape_known_) return;
    try {
        for (std::size_t i = 0; i < candidates_.size();) {
            const std::uint32_t index = candidates_[i];
            std::uint64_t keep = 0;
            bool drop = false;
            if (ready_to_freeze(index, keep, drop) && !plan_freeze(index, keep)) return;
            if (drop) {
                flags_[index] &= static_cast<std::uint8_t>(~kListed);
                candidates_[i] = candidates_.back();
                candidates_.pop_back();
            } else {
                ++i;
            }
        }
        // Jobs are laid out once it is known which pages freeze.
        const int heads_per_job = std::max(1, kValuesPerJob / (kPageTokens * layout_.shape.head_dim));
        std::size_t floats = 0;
        for (std::size_t f = 0; f < work.freezes.size(); ++f) {
            if (work.freezes[f].encoded) continue;
            for (int head = 0; head < layout_.shape.n_head; head += heads_per_job) {
                const int n = std::min(heads_per_job, layout_.shape.n_head - head);
                work.encodes.push_back({static_cast<std::uint32_t>(f), head, n, floats, 0});
                if (work.freezes[f].before.state == PageState::cold) floats += scratch_floats() * 2;
            }
        }
        work.floats.resize(floats);
    } catch (const std::bad_alloc&) {  // records, not pages
        for (const auto& freeze : work.freezes) {
            if (freeze.encoded) flags_[freeze.page] |= kSuspect;
            config_.arena->release(freeze.block, cold_bytes());
            config_.arena->release(reinterpret_cast<std::byte*>(freeze.overlay), overlay_bytes(freeze.keep));
        }
        work.freezes.clear();
        work.encodes.clear();
    }
}

// False when memory is short.
bool KvTensor::plan_freeze(std::uint32_t index, std::uint64_t keep) {
    Work& work = *work_;
    work.freezes.reserve(work.freezes.size() + 1);
    Work::Freeze freeze{index, keep, nullptr, nullptr, pages_[index], false, 0};
    try {
        freeze.block = config_.arena->allocate(cold_bytes());
        freeze.overlay = allocate_overlay(keep);
    } catch (const Error&) {
        config_.arena->release(freeze.block, cold_bytes());
        return false;
    }
    work.freezes.push_back(freeze);
    const Page& page = pages_[index];
    if (page.shift_groups != 0) join_largest_group(index, page.overlay & ~keep);
    if ((flags_[index] & kSuspect) == 0) return true;
    // Attention is planned on the page states that begin_write() leaves, so a page must not turn out to be
    // unfit in a job: try now.
    const auto f = work.freezes.size() - 1;
    bool fits = true;
    try {
        std::vector<float> scratch(scratch_floats() * 2);
        for (int head = 0; head < layout_.shape.n_head && fits; ++head)
            fits = encode_head(f, head, scratch.data());
    } catch (const std::bad_alloc&) {
        config_.arena->release(freeze.block, cold_bytes());
        config_.arena->release(reinterpret_cast<std::byte*>(freeze.overlay), overlay_bytes(keep));
        work.freezes.pop_back();
        return false;
    }
    flags_[index] &= static_cast<std::uint8_t>(~kSuspect);
    if (fits) {
        work.freezes.back().encoded = true;
        return true;
    }
    flags_[index] |= kRefused;
    config_.arena->release(freeze.block, cold_bytes());
    config_.arena->release(reinterpret_cast<std::byte*>(freeze.overlay), overlay_bytes(keep));
    work.freezes.pop_back();
    return true;
}

void KvTensor::commit_freezes() noexcept {
    const HeadShape& shape = layout_.shape;
    for (const auto& freeze : work_->freezes) {
        Page& page = pages_[freeze.page];
        page.state = PageState::cold;
        page.data = freeze.block;
        page.overlay = freeze.keep;
        page.overlay_rows = freeze.overlay;
        for_each_cell(freeze.keep, [&](int t) {
            std::ptrdiff_t from_stride = 0, to_stride = 0;
            const std::byte* from = row_target(freeze.before, t, from_stride);
            std::byte* to = row_target(page, t, to_stride);
            for (int head = 0; head < shape.n_head; ++head) {
                std::memcpy(to + head * to_stride, from + head * from_stride, layout_.head_bytes());
            }
        });
    }
}

// Encodes one head of a page from its storage before the freeze. scratch: for pages that were cold, 2 *
// scratch_floats(). False: the codec refused, the block is as before.
bool KvTensor::encode_head(std::size_t f, int head, float* scratch) noexcept {
    const Work::Freeze& freeze = work_->freezes[f];
    const HeadShape& shape = layout_.shape;
    const auto& codec = config_.kernels->formats[layout_.format_index];
    const bool is_key = layout_.role == KvRole::key;
    const auto head_elements = static_cast<std::size_t>(shape.head_dim);
    const auto* rows = reinterpret_cast<const fp16_t*>(layout_.head_data(freeze.before, head));
    if (freeze.before.state == PageState::cold) {
        // What the block decodes to, with the overlay rows in their places.
        const std::ptrdiff_t stride = (shape.head_dim + 15) / 16 * 16;
        const int rotation = hadamard_size(shape.head_dim);
        auto* decoded = reinterpret_cast<fp16_t*>(scratch + scratch_floats());
        const kernels::PageData block{layout_.head_data(freeze.before, head), 0, kPageTokens, shape.head_dim};
        (is_key ? codec.decode_key : codec.decode_value)({block, scratch, stride, false});
        for (int t = 0; t < kPageTokens; ++t) {
            fp16_t* row = decoded + static_cast<std::size_t>(t) * head_elements;
            if ((valid_cells(freeze.page) >> t & 1) == 0) {  // beyond the last cell
                std::memset(row, 0, layout_.head_bytes());
                continue;
            }
            if ((freeze.before.overlay >> t & 1) != 0) {
                std::ptrdiff_t head_stride = 0;
                std::memcpy(row, row_target(freeze.before, t, head_stride) + head * head_stride,
                            layout_.head_bytes());
                // The block's keys stay as they are, so that they find their codes again; this one becomes
                // as its group.
                const float* turn = freeze.before.shift_groups != 0 ? pending_turn(freeze.page, t) : nullptr;
                if (turn != nullptr) {
                    float* key = scratch + t * stride;
                    config_.kernels->fp16_to_fp32(row, key, shape.head_dim);
                    turn_key_back(turns_.pairs, turn, key);
                    config_.kernels->fp32_to_fp16(key, row, shape.head_dim);
                }
                continue;
            }
            if (!is_key && rotation > 1)
                config_.kernels->hadamard(scratch + t * stride, shape.head_dim, rotation);
            config_.kernels->fp32_to_fp16(scratch + t * stride, row, shape.head_dim);
        }
        rows = decoded;
    }
    return (is_key ? codec.encode_key : codec.encode_value)(
        {rows, shape.head_dim, shape.head_dim, valid_cells(freeze.page) & ~freeze.keep,
         freeze.block + static_cast<std::size_t>(head) * layout_.block_bytes});
}

void KvTensor::run_encode(std::size_t job) noexcept {
    auto& encode = work_->encodes[job];
    for (int head = encode.first_head; head < encode.first_head + encode.n_heads; ++head) {
        if (!encode_head(encode.freeze, head, work_->floats.data() + encode.scratch)) encode.refused = 1;
    }
}

void KvTensor::finish_freezes() noexcept {
    Work& work = *work_;
    for (const auto& encode : work.encodes) work.freezes[encode.freeze].refused |= encode.refused;
    for (auto& freeze : work.freezes) {
        Page& page = pages_[freeze.page];
        Page released = freeze.before;
        if (freeze.refused != 0) {  // only a codec that refuses ordinary values gets here
            std::swap(released, page);
            flags_[freeze.page] |= kRefused;
        } else {
            ++(freeze.before.state == PageState::hot ? counters_.freezes : counters_.reencodes);
        }
        release_storage(released);
    }
    work.freezes.clear();
    work.encodes.clear();
}

// All of it at once, between graphs. Pages marked in touched_ wait.
void KvTensor::freeze_now() {
    plan_freezes();
    commit_freezes();
    for (std::size_t job = 0; job < work_->encodes.size(); ++job) run_encode(job);
    finish_freezes();
    work_->shrink();
}

}  // namespace mixed_kv
