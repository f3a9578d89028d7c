#include <algorithm>
#include <bit>
#include <climits>
#include <cstring>
#include <memory>
#include <vector>

#include "cache/kv_work.h"
#include "cache/overlay.h"
#include "cache/row_values.h"
#include "kernels/contract.h"
#include "mixed_kv/error.h"
#include "mixed_kv/kv_tensor.h"
#include "mixed_kv/page_arena.h"

// K-shift: exact rows are turned, blocks take note of it.
namespace mixed_kv {

using cache::for_each_cell;

// The turn of a cell whose turn was `before`; kNoTurn when it comes to nothing.
std::uint32_t KvTensor::ShiftPlan::find_turn(const PendingTurns& old, std::uint32_t before,
                                             std::uint32_t kind) {
    const std::int64_t distance =
        (before != kNoTurn ? old.distances[before] : 0) + (kind != 0 ? shift.distances[kind - 1] : 0);
    if (distance == 0) return kNoTurn;
    const auto same = std::find(turns.distances.begin(), turns.distances.end(), distance);
    if (same != turns.distances.end()) return static_cast<std::uint32_t>(same - turns.distances.begin());
    const auto n = static_cast<std::size_t>(shift.pairs.n_pairs);
    turns.distances.push_back(distance);
    const std::size_t at = turns.values.size();
    turns.values.resize(at + 2 * n);
    float* turn = turns.values.data() + at;
    const float* first = before != kNoTurn ? old.turn(before) : nullptr;
    const float* second = kind != 0 ? shift.turns + (kind - 1) * 2 * n : nullptr;
    for (std::size_t i = 0; i < n; ++i) {
        const float c1 = first != nullptr ? first[i] : 1.0f, s1 = first != nullptr ? first[n + i] : 0.0f;
        const float c2 = second != nullptr ? second[i] : 1.0f, s2 = second != nullptr ? second[n + i] : 0.0f;
        turn[i] = c1 * c2 - s1 * s2;
        turn[n + i] = s1 * c2 + c1 * s2;
    }
    return static_cast<std::uint32_t>(turns.distances.size() - 1);
}

void KvTensor::plan_shift(const KeyShift& shift) {
    if (pinned() || layout_.role != KvRole::key || shift.n_head * shift.head_dim != config_.row_elements ||
        shift.pairs.first + 2 * shift.pairs.n_pairs > shift.head_dim) {
        throw Error("KV tensor: a K-shift of " + std::to_string(shift.n_head) + " heads of " +
                    std::to_string(shift.head_dim) + " values does not fit rows of " +
                    std::to_string(config_.row_elements) + ", or these are no keys");
    }
    abandon_shift();
    shift_plan_ = std::make_unique<ShiftPlan>();
    ShiftPlan& plan = *shift_plan_;
    plan.shift = shift;
    plan.turns.pairs = shift.pairs;
    try {
        plan.n_groups.resize(pages_.size());
        plan.head.resize(2 * static_cast<std::size_t>(shift.pairs.n_pairs));
        plan.rows.resize(layout_.row_bytes() / sizeof(fp16_t));
        for (std::uint32_t index = 0; index < pages_.size(); ++index) {
            if (pages_[index].state != PageState::cold || plan_groups(index)) continue;
            plan.rows.resize(hot_bytes() / sizeof(fp16_t));
            plan.floats.resize(scratch_floats());
            plan.thaws.push_back({index, nullptr});
        }
        const std::size_t needed = plan.thaws.size() * hot_bytes();
        if (needed != 0 && has_ladder() && page_bytes_ + needed > allowance_.at_once) {
            // Pages that step down have no turns left, so that fewer are too many.
            const std::size_t bytes = allowance_.bytes > needed ? allowance_.bytes - needed : 0;
            if (step_down(bytes, INT_MAX) > 0) {
                plan_shift(shift);
                return;
            }
        }
        for (auto& thaw : plan.thaws) thaw.hot = allocate_hot();
        candidates_.reserve(candidates_.size() + plan.thaws.size());
    } catch (...) {
        abandon_shift();
        throw;
    }
}

// The groups that a cold page will have. False when they are too many.
bool KvTensor::plan_groups(std::uint32_t index) {
    ShiftPlan& plan = *shift_plan_;
    const Page& page = pages_[index];
    const std::uint32_t* kinds = plan.shift.kinds + first_cell_of(index);
    const std::uint64_t block = page.block_cells();
    // Cells by what they had and what they get.
    struct Group {
        std::uint32_t before, kind;
        std::uint64_t cells;
    };
    // Sums of different turns may be equal, so there may be more of these than groups of the result.
    constexpr int kMost = 4 * PageShift::kMaxGroups;
    Group groups[kMost];
    int n = 0;
    bool moves = false;
    for (std::uint64_t rest = block; rest != 0; rest &= rest - 1) {
        const int t = std::countr_zero(rest);
        std::uint32_t before = ShiftPlan::kNoTurn;
        for (std::uint32_t g = 0; g < page.shift_groups; ++g) {
            if ((shifts_[index].cells[g] >> t & 1) != 0) before = shifts_[index].turn[g];
        }
        moves |= before != ShiftPlan::kNoTurn || kinds[t] != 0;
        int g = 0;
        while (g < n && (groups[g].before != before || groups[g].kind != kinds[t])) ++g;
        if (g == kMost) return false;
        if (g == n) groups[n++] = {before, kinds[t], 0};
        groups[g].cells |= std::uint64_t{1} << t;
    }
    if (!moves) return true;
    const bool fits = shape_known_ && plan.shift.n_head == layout_.shape.n_head &&
                      (turns_.distances.empty() || turns_.pairs == plan.shift.pairs);
    if (!fits) return false;

    PageShift result;
    std::uint8_t used = 0;
    for (int g = 0; g < n; ++g) {
        const std::uint32_t turn = plan.find_turn(turns_, groups[g].before, groups[g].kind);
        if (turn == ShiftPlan::kNoTurn) continue;
        int at = 0;
        while (at < used && result.turn[at] != turn) ++at;
        if (at == PageShift::kMaxGroups) return false;
        if (at == used) result.turn[used++] = turn;
        result.cells[at] |= groups[g].cells;
    }
    if (used == 0) return true;
    if (plan.shifts.empty()) plan.shifts.resize(pages_.size());
    plan.shifts[index] = result;
    plan.n_groups[index] = used;
    return true;
}

void KvTensor::abandon_shift() noexcept {
    if (shift_plan_ == nullptr) return;
    for (const auto& thaw : shift_plan_->thaws) give(thaw.hot, hot_bytes());
    shift_plan_.reset();
}

void KvTensor::commit_shift() noexcept {
    if (shift_plan_ == nullptr) return;
    ShiftPlan& plan = *shift_plan_;
    for (auto& thaw : plan.thaws) {
        make_hot(thaw.page, thaw.hot, plan.rows.data(), plan.floats.data());
        thaw.hot = nullptr;
    }
    for (std::uint32_t index = 0; index < pages_.size(); ++index) {
        Page& page = pages_[index];
        if (page.state == PageState::empty) continue;
        const Turned turned = turn_exact_rows(index);
        page.shift_groups = page.state == PageState::cold ? plan.n_groups[index] : 0;
        if (turned.any && (flags_[index] & kRefused) != 0) flags_[index] ^= kRefused | kSuspect;
        if (turned.has_large) flags_[index] |= kSuspect;
    }
    shifts_ = std::move(plan.shifts);
    turns_ = std::move(plan.turns);
    abandon_shift();
    keep_allowance_now();
}

// Turns one dense row. Whether it holds a value that the codec may refuse.
bool KvTensor::turn_row(fp16_t* row, std::uint32_t kind) noexcept {
    ShiftPlan& plan = *shift_plan_;
    const KeyShift& shift = plan.shift;
    const float* turn = shift.turns + static_cast<std::ptrdiff_t>(kind - 1) * 2 * shift.pairs.n_pairs;
    const RotaryPairs pairs{0, shift.pairs.n_pairs, shift.pairs.interleaved};
    for (int head = 0; head < shift.n_head; ++head) {
        fp16_t* part = row + static_cast<std::ptrdiff_t>(head) * shift.head_dim + shift.pairs.first;
        config_.kernels->fp16_to_fp32(part, plan.head.data(), 2 * pairs.n_pairs);
        turn_key(pairs, turn, plan.head.data());
        config_.kernels->fp32_to_fp16(plan.head.data(), part, 2 * pairs.n_pairs);
    }
    return cache::has_large_value(row, config_.row_elements);
}

// Hot and overlay rows of a page, in place.
KvTensor::Turned KvTensor::turn_exact_rows(std::uint32_t index) noexcept {
    ShiftPlan& plan = *shift_plan_;
    const Page& page = pages_[index];
    const std::int64_t first_cell = first_cell_of(index);
    const std::size_t head_bytes = layout_.head_bytes();
    auto* dense = reinterpret_cast<std::byte*>(plan.rows.data());
    Turned turned;
    for_each_cell(page.state == PageState::cold ? page.overlay : page.written, [&](int t) {
        const std::uint32_t kind = plan.shift.kinds[first_cell + t];
        if (kind == 0) return;
        std::ptrdiff_t stride = 0;
        std::byte* row = row_target(page, t, stride);
        for (int head = 0; head < layout_.shape.n_head; ++head) {
            std::memcpy(dense + static_cast<std::size_t>(head) * head_bytes, row + head * stride, head_bytes);
        }
        turned.any = true;
        turned.has_large |= turn_row(plan.rows.data(), kind);
        put_row(page, t, plan.rows.data());
    });
    return turned;
}

// A cold page with its rows as they decode; they are not to be encoded again. rows: [64][row_elements].
void KvTensor::make_hot(std::uint32_t index, std::byte* hot, fp16_t* rows, float* scratch) noexcept {
    Page& page = pages_[index];
    decode_rows(index, 0, kPageTokens, rows, scratch);
    const std::uint64_t in_blocks = page.block_cells();
    release_storage(page);
    const std::uint64_t written = page.written, settled = page.settled;
    page = {};
    page.state = PageState::hot;
    page.data = hot;
    page.written = written;
    page.settled = settled | in_blocks;
    for (int t = 0; t < kPageTokens; ++t)
        put_row(page, t, rows + static_cast<std::ptrdiff_t>(t) * config_.row_elements);
    ++counters_.promotions;
    list_candidate(index);
}

// The turn that the key of a block's cell still needs; null when it needs none.
const float* KvTensor::pending_turn(std::uint32_t index, int token) const noexcept {
    for (std::uint32_t g = 0; g < pages_[index].shift_groups; ++g) {
        if ((shifts_[index].cells[g] >> token & 1) != 0) return turns_.turn(shifts_[index].turn[g]);
    }
    return nullptr;
}

// These cells' rows are as they read.
void KvTensor::forget_turns(std::uint32_t index, std::uint64_t cells) noexcept {
    for (std::uint32_t g = 0; g < pages_[index].shift_groups; ++g) shifts_[index].cells[g] &= ~cells;
}

}  // namespace mixed_kv
