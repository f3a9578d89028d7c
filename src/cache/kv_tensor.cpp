#include "mixed_kv/kv_tensor.h"

#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <string>

#include "cache/kv_work.h"
#include "cache/overlay.h"
#include "cache/restore.h"
#include "kernels/contract.h"
#include "mixed_kv/error.h"
#include "mixed_kv/page_arena.h"
#include "mixed_kv/window_tracker.h"

// Construction, head shape, storage of single pages, accounting.
namespace mixed_kv {

using cache::for_each_cell;
using cache::overlay_capacity;
using cache::overlay_index;

namespace {

constexpr std::uintptr_t kSystemPage = 4096;

}  // namespace

KvTensor::KvTensor(const Config& config) : config_(config), work_(std::make_unique<Work>()) {
    const auto refuse = [](const std::string& why) { throw Error("KV tensor: " + why); };
    if (config.n_cells < 1 || config.n_stream < 1 || config.row_elements < 1) {
        refuse(std::to_string(config.n_stream) + " streams of " + std::to_string(config.n_cells) +
               " cells of " + std::to_string(config.row_elements) + " values: all must be positive");
    }
    if (config.kernels == nullptr || config.arena == nullptr) refuse("kernels and an arena are needed");
    pages_per_stream_ = (config.n_cells + kPageTokens - 1) / kPageTokens;
    if (pages_per_stream_ * config.n_stream >= kNoPage) {
        refuse(std::to_string(config.n_stream) + " streams of " + std::to_string(config.n_cells) +
               " cells are more pages than can be numbered");
    }
    layout_.role = config.role;
    layout_.shape = {1, config.row_elements};
    if (config.format != nullptr) {
        if (config.tracker == nullptr) refuse("a cold format needs a window tracker");
        const auto& tracked = config.tracker->config();
        if (tracked.n_cells != config.n_cells || tracked.n_stream != config.n_stream) {
            refuse("the window tracker is for " + std::to_string(tracked.n_stream) + " streams of " +
                   std::to_string(tracked.n_cells) + " cells, the tensor has " +
                   std::to_string(config.n_stream) + " of " + std::to_string(config.n_cells));
        }
        const auto formats = cold_formats();
        const auto found = std::find_if(formats.begin(), formats.end(),
                                        [&](const ColdFormat& f) { return &f == config.format; });
        if (found == formats.end()) refuse("the cold format is not one of the registry's");
        layout_.format = config.format;
        layout_.format_index = static_cast<int>(found - formats.begin());
    }
    const ColdFormat* wider = nullptr;
    for (const ColdFormat* rung : config.ladder) {
        if (wider == nullptr ? rung != config.format : rung <= wider)
            refuse("a ladder begins with the tensor's format and goes down");
        wider = rung;
    }
    const auto n_pages = static_cast<std::size_t>(pages_per_stream_ * config.n_stream);
    pages_.resize(n_pages);
    flags_.resize(n_pages);
    touched_.resize(n_pages);
}

KvTensor::~KvTensor() {
    abandon_shift();
    for (Page& page : pages_) release_storage(page);
}

bool KvTensor::set_head_shape(HeadShape shape) {
    if (shape_known_ && shape == layout_.shape) return true;
    if (shape.n_head < 1 || shape.head_dim < 1 || shape.head_dim > kernels::kMaxHeadDim ||
        shape.row_elements() != config_.row_elements) {
        return false;
    }
    const auto is_cold = [](const Page& page) { return page.state == PageState::cold; };
    if (std::any_of(pages_.begin(), pages_.end(), is_cold)) return false;
    PageLayout layout = layout_;
    layout.shape = shape;
    if (layout.format != nullptr)
        layout.block_bytes = layout.format->block_bytes(layout.role, shape.head_dim);
    std::vector<fp16_t> rows(layout.row_bytes() / sizeof(fp16_t) * kPageTokens);
    for (std::uint32_t index = 0; index < pages_.size(); ++index) {
        const Page& page = pages_[index];
        if (page.state != PageState::hot) continue;
        decode_rows(index, 0, kPageTokens, rows.data(), nullptr);
        auto* hot = reinterpret_cast<fp16_t*>(page.data);
        for (int head = 0; head < shape.n_head; ++head) {
            for (int t = 0; t < kPageTokens; ++t) {
                std::memcpy(hot, rows.data() + t * shape.row_elements() + head * shape.head_dim,
                            layout.head_bytes());
                hot += shape.head_dim;
            }
        }
    }
    layout_ = layout;
    shape_known_ = true;
    // Hot pages of a tensor that freezes come and go.
    const bool stays_hot = layout_.format == nullptr || has_ladder();
    config_.arena->expect_lasting(stays_hot ? hot_bytes() : cold_bytes());
    for (const ColdFormat* rung : config_.ladder)
        config_.arena->expect_lasting(bytes_in(static_cast<int>(rung - cold_formats().data())));
    return true;
}

PageTable KvTensor::pages(int stream) const noexcept {
    const PageShift* shifts = shifts_.empty() ? nullptr : shifts_.data() + stream * pages_per_stream_;
    return {pages_.data() + stream * pages_per_stream_, pages_per_stream_, layout_, shifts, &turns_};
}

int KvTensor::rows_in_page(std::int64_t page) const noexcept {
    return static_cast<int>(std::min<std::int64_t>(kPageTokens, config_.n_cells - page * kPageTokens));
}

std::uint64_t KvTensor::valid_cells(std::uint32_t index) const noexcept {
    const int n = rows_in_page(index % pages_per_stream_);
    return n == kPageTokens ? ~std::uint64_t{0} : (std::uint64_t{1} << n) - 1;
}

std::uint32_t KvTensor::page_of(std::int64_t global_cell) const noexcept {
    return static_cast<std::uint32_t>(global_cell / config_.n_cells * pages_per_stream_ +
                                      global_cell % config_.n_cells / kPageTokens);
}

std::int64_t KvTensor::first_cell_of(std::uint32_t index) const noexcept {
    return index / pages_per_stream_ * config_.n_cells + index % pages_per_stream_ * kPageTokens;
}

void KvTensor::check_range(const char* what, std::size_t offset, std::size_t size) const {
    const std::size_t all =
        static_cast<std::size_t>(config_.n_cells * config_.n_stream) * layout_.row_bytes();
    if (offset > all || size > all - offset) {
        throw Error(std::string("KV tensor: ") + what + " of " + std::to_string(size) + " bytes at " +
                    std::to_string(offset) + " lies beyond the end at " + std::to_string(all));
    }
}

std::size_t KvTensor::overlay_bytes(std::uint64_t cells) const noexcept {
    return static_cast<std::size_t>(overlay_capacity(std::popcount(cells))) * layout_.row_bytes();
}

std::byte* KvTensor::take(std::size_t bytes) {
    std::byte* data = config_.arena->allocate(bytes);
    page_bytes_ += PageArena::block_bytes(bytes);
    return data;
}

void KvTensor::give(std::byte* data, std::size_t bytes) noexcept {
    if (data == nullptr) return;
    config_.arena->release(data, bytes);
    page_bytes_ -= PageArena::block_bytes(bytes);
}

std::size_t KvTensor::bytes_in(int format) const noexcept {
    return cold_formats()[static_cast<std::size_t>(format)].block_bytes(layout_.role,
                                                                        layout_.shape.head_dim) *
           static_cast<std::size_t>(layout_.shape.n_head);
}

std::byte* KvTensor::allocate_hot() { return take(hot_bytes()); }

fp16_t* KvTensor::allocate_overlay(std::uint64_t cells) {
    return cells == 0 ? nullptr : reinterpret_cast<fp16_t*>(take(overlay_bytes(cells)));
}

void KvTensor::release_block(const PageBlock& block) noexcept {
    if (block.users != nullptr) {
        block.users[1] -= static_cast<std::uint32_t>(std::popcount(block.cells));
        if (--block.users[0] > 0) return;
        delete[] block.users;
    }
    give(block.data, bytes_of(block));
}

void KvTensor::release_storage(Page& page) noexcept {
    if (page.state == PageState::hot) give(page.data, hot_bytes());
    if (page.state != PageState::cold) return;
    for (int i = 0; i < page.n_blocks; ++i) release_block(page.block(i));
    delete[] page.more;
    give(reinterpret_cast<std::byte*>(page.overlay_rows), overlay_bytes(page.overlay));
}

// The blocks of a cold page no longer answer for these cells; one without any left is released.
void KvTensor::drop_block_cells(std::uint32_t index, std::uint64_t cells) noexcept {
    Page& page = pages_[index];
    int n_left = 0;
    for (int i = 0; i < page.n_blocks; ++i) {
        PageBlock& block = page.block(i);
        const std::uint64_t gone = block.cells & cells;
        if (gone != 0 && block.users != nullptr) {
            block.users[1] -= static_cast<std::uint32_t>(std::popcount(gone));
            // Whoever shares it may find that it is not worth its memory any more.
            if (index > 0) list_candidate(index - 1);
            if (index + 1 < pages_.size()) list_candidate(index + 1);
        }
        block.cells &= ~cells;
        if (block.cells == 0) {
            release_block(block);
        } else {
            page.block(n_left++) = block;
        }
    }
    page.n_blocks = static_cast<std::uint8_t>(n_left);
    if (n_left <= 1) {
        delete[] page.more;
        page.more = nullptr;
    }
}

void KvTensor::make_empty(std::uint32_t index) noexcept {
    release_storage(pages_[index]);
    pages_[index] = Page{};
    flags_[index] &= kListed;
}

void KvTensor::clear() noexcept {
    candidates_.clear();
    n_small_writes_ = 0;
    restore_.reset();
    shifts_ = std::vector<PageShift>();
    turns_ = PendingTurns{};
    for (std::size_t i = 0; i < pages_.size(); ++i) {
        flags_[i] = 0;
        if (pinned()) {
            pages_[i].written = 0;
        } else {
            make_empty(static_cast<std::uint32_t>(i));
        }
    }
    if (!pinned()) return;
    // Fresh anonymous memory reads as zero and is not resident.
    const std::size_t size =
        static_cast<std::size_t>(config_.n_cells * config_.n_stream) * layout_.row_bytes();
    const auto begin = reinterpret_cast<std::uintptr_t>(pinned_base_), end = begin + size;
    const std::uintptr_t first = (begin + kSystemPage - 1) / kSystemPage * kSystemPage;
    const std::uintptr_t last = end / kSystemPage * kSystemPage;
    if (first < last && madvise(pinned_base_ + (first - begin), last - first, MADV_DONTNEED) == 0) {
        std::memset(pinned_base_, 0, first - begin);
        std::memset(pinned_base_ + (last - begin), 0, end - last);
    } else {
        std::memset(pinned_base_, 0, size);
    }
}

void KvTensor::list_candidate(std::uint32_t index) noexcept {
    if ((flags_[index] & kListed) != 0 || layout_.format == nullptr) return;
    flags_[index] |= kListed;
    candidates_.push_back(index);
}

// Cells got new rows: what the codec once refused may be gone.
void KvTensor::note_written(std::uint32_t index, std::uint64_t cells) noexcept {
    pages_[index].written |= cells;
    pages_[index].settled &= ~cells;
    if ((flags_[index] & kRefused) != 0) flags_[index] ^= kRefused | kSuspect;
    list_candidate(index);
}

// Whether a write of whole rows to these cells leaves nothing in the blocks of a cold page.
bool KvTensor::promotes(std::uint32_t index, std::uint64_t cells) const noexcept {
    const Page& page = pages_[index];
    return page.state == PageState::cold && (page.block_cells() & ~cells) == 0;
}

void KvTensor::promote(std::uint32_t index, std::uint64_t cells, std::byte* hot) noexcept {
    Page& page = pages_[index];
    Page before = page;
    page.state = PageState::hot;
    page.data = hot;
    page.overlay = 0;
    page.overlay_rows = nullptr;
    page.n_blocks = 0;
    page.more = nullptr;
    page.shift_groups = 0;
    if ((before.overlay | cells) != ~std::uint64_t{0}) std::memset(hot, 0, hot_bytes());
    copy_exact_rows(before, page, before.overlay & ~cells);
    release_storage(before);
    ++counters_.promotions;
}

bool KvTensor::overlay_fits(const Page& page, std::uint64_t cells) const noexcept {
    return overlay_bytes(page.overlay | cells) == overlay_bytes(page.overlay);
}

// Makes room for these cells' rows in the overlay of a cold page. rows: the new array, or null when the rows
// fit.
void KvTensor::grow_overlay(Page& page, std::uint64_t cells, fp16_t* rows) noexcept {
    const std::uint64_t merged = page.overlay | cells;
    fp16_t* to = rows != nullptr ? rows : page.overlay_rows;
    // From the last row to the first, because in place rows only move up.
    for (std::uint64_t left = page.overlay; left != 0;) {
        const int t = 63 - std::countl_zero(left);
        left &= ~(std::uint64_t{1} << t);
        const auto from_index = static_cast<std::ptrdiff_t>(overlay_index(page.overlay, t));
        const auto to_index = static_cast<std::ptrdiff_t>(overlay_index(merged, t));
        if (to == page.overlay_rows && from_index == to_index) continue;
        std::memcpy(to + to_index * layout_.shape.row_elements(),
                    page.overlay_rows + from_index * layout_.shape.row_elements(), layout_.row_bytes());
    }
    if (rows != nullptr) {
        give(reinterpret_cast<std::byte*>(page.overlay_rows), overlay_bytes(page.overlay));
        page.overlay_rows = rows;
    }
    page.overlay = merged;
}

// Exact rows of these cells, from one page's storage to another's.
void KvTensor::copy_exact_rows(const Page& from, const Page& to, std::uint64_t cells) const noexcept {
    for_each_cell(cells, [&](int t) {
        std::ptrdiff_t from_stride = 0, to_stride = 0;
        const std::byte* source = row_target(from, t, from_stride);
        std::byte* target = row_target(to, t, to_stride);
        for (int head = 0; head < layout_.shape.n_head; ++head) {
            std::memcpy(target + head * to_stride, source + head * from_stride, layout_.head_bytes());
        }
    });
}

// A dense row into exact storage.
void KvTensor::put_row(const Page& page, int token, const fp16_t* row) const noexcept {
    std::ptrdiff_t stride = 0;
    std::byte* target = row_target(page, token, stride);
    for (int head = 0; head < layout_.shape.n_head; ++head) {
        std::memcpy(target + head * stride, row + head * layout_.shape.head_dim, layout_.head_bytes());
    }
}

// Where an exact row (hot, overlay, pinned) lies; head_stride_bytes from one head to the next.
std::byte* KvTensor::row_target(const Page& page, int token,
                                std::ptrdiff_t& head_stride_bytes) const noexcept {
    head_stride_bytes = static_cast<std::ptrdiff_t>(layout_.head_bytes());
    switch (page.state) {
        case PageState::hot:
            head_stride_bytes *= kPageTokens;
            return page.data + static_cast<std::size_t>(token) * layout_.head_bytes();
        case PageState::pinned:
            return page.data + static_cast<std::size_t>(token) * layout_.row_bytes();
        case PageState::cold:
            return reinterpret_cast<std::byte*>(page.overlay_rows) +
                   static_cast<std::size_t>(overlay_index(page.overlay, token)) * layout_.row_bytes();
        case PageState::empty:
            break;
    }
    return nullptr;
}

std::size_t KvTensor::scratch_floats() const noexcept {
    return static_cast<std::size_t>((layout_.shape.head_dim + 15) / 16 * 16) * kPageTokens;
}

// Rows first .. first + n - 1 of a page, dense, in the basis they were written in, every K-shift applied.
// scratch: scratch_floats(), for cold pages.
void KvTensor::decode_rows(std::uint32_t index, int first, int n, fp16_t* rows,
                           float* scratch) const noexcept {
    const Page& page = pages_[index];
    const HeadShape& shape = layout_.shape;
    const std::uint64_t wanted = (n == kPageTokens ? ~std::uint64_t{0} : (std::uint64_t{1} << n) - 1)
                                 << first;
    const bool is_cold = page.state == PageState::cold;
    const std::uint64_t exact = page.state == PageState::empty ? 0
                                : is_cold                      ? page.overlay
                                                               : ~std::uint64_t{0};
    const auto row = [&](int t) {
        return rows + static_cast<std::ptrdiff_t>(t - first) * shape.row_elements();
    };
    for_each_cell(wanted & ~exact & ~page.block_cells(),
                  [&](int t) { std::memset(row(t), 0, layout_.row_bytes()); });
    const bool is_key = layout_.role == KvRole::key;
    const std::ptrdiff_t stride = (shape.head_dim + 15) / 16 * 16;
    const int rotation = hadamard_size(shape.head_dim);
    for (int i = 0; i < page.n_blocks; ++i) {
        const PageBlock& block = page.block(i);
        if ((block.cells & wanted) == 0) continue;
        const auto& codec = config_.kernels->formats[block.format];
        for (int head = 0; head < shape.n_head; ++head) {
            const kernels::PageData data{layout_.head_data(block, head), 0, kPageTokens, shape.head_dim};
            (is_key ? codec.decode_key : codec.decode_value)({data, scratch, stride, false});
            for_each_cell(block.cells & wanted, [&](int t) {
                float* decoded = scratch + block.row_of(t) * stride;
                if (!is_key && rotation > 1) config_.kernels->hadamard(decoded, shape.head_dim, rotation);
                const float* turn = page.shift_groups != 0 ? pending_turn(index, t) : nullptr;
                if (turn != nullptr) turn_key(turns_.pairs, turn, decoded);
                config_.kernels->fp32_to_fp16(decoded, row(t) + head * shape.head_dim, shape.head_dim);
            });
        }
    }
    for_each_cell(wanted & exact, [&](int t) {
        std::ptrdiff_t head_stride = 0;
        const std::byte* from = row_target(page, t, head_stride);
        for (int head = 0; head < shape.n_head; ++head) {
            std::memcpy(row(t) + head * shape.head_dim, from + head * head_stride, layout_.head_bytes());
        }
    });
}

KvTensor::Memory KvTensor::memory() const noexcept {
    Memory memory;
    const auto bytes = [](const auto& v) { return v.capacity() * sizeof(v[0]); };
    memory.bookkeeping = sizeof(*this) + bytes(pages_) + bytes(flags_) + bytes(touched_) +
                         bytes(candidates_) + bytes(shifts_) + bytes(turns_.distances) +
                         bytes(turns_.values) + work_->memory_bytes();
    for (const Page& page : pages_) {
        if (page.state == PageState::hot) memory.hot += hot_bytes();
        memory.rows_written += std::popcount(page.written);
        if (page.state != PageState::cold) continue;
        memory.overlay += overlay_bytes(page.overlay);
        // Of a shared block each page counts its part.
        for (int i = 0; i < page.n_blocks; ++i) {
            const std::uint32_t* users = page.block(i).users;
            memory.cold += bytes_of(page.block(i)) / (users == nullptr ? 1 : users[0]);
            if (users != nullptr) memory.bookkeeping += 2 * sizeof(*users) / users[0];
        }
        if (page.more != nullptr) memory.bookkeeping += sizeof(PageBlock) * (Page::kMaxBlocks - 1);
    }
    for (const auto& freeze : work_->freezes) {  // between begin_write() and end_write()
        if (freeze.before.state == PageState::hot) memory.hot += hot_bytes();
        if (freeze.before.state == PageState::cold) memory.overlay += overlay_bytes(freeze.before.overlay);
        for (int i = 0; i < freeze.n_retired; ++i) memory.cold += bytes_of(freeze.gone[i]);
    }
    if (pinned()) {
        const std::size_t size =
            static_cast<std::size_t>(config_.n_cells * config_.n_stream) * layout_.row_bytes();
        const auto begin = reinterpret_cast<std::uintptr_t>(pinned_base_), end = begin + size;
        // In pieces, so that nothing is allocated here. Units shared with a neighbour count by the bytes
        // inside.
        constexpr std::size_t kPiece = 1024;
        unsigned char resident[kPiece];
        for (std::uintptr_t at = begin / kSystemPage * kSystemPage; at < end; at += kPiece * kSystemPage) {
            const std::size_t n = std::min<std::size_t>(kPiece, (end - at + kSystemPage - 1) / kSystemPage);
            if (mincore(reinterpret_cast<void*>(at), n * kSystemPage, resident) != 0) continue;
            for (std::size_t i = 0; i < n; ++i) {
                const std::uintptr_t unit = at + i * kSystemPage;
                if ((resident[i] & 1) != 0) {
                    memory.pinned += std::min(end, unit + kSystemPage) - std::max(begin, unit);
                }
            }
        }
    }
    return memory;
}

}  // namespace mixed_kv
