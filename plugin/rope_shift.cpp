#include "rope_shift.h"

#include <algorithm>
#include <cmath>
#include <unordered_map>

#include "graphs.h"

namespace mixed_kv::plugin {

namespace {

// YaRN's attention factor is part of a key since it was written; a key that moves must not get it again
// (docs/adr/0022-a-row-is-rounded-once.md). A turn that has length 1 but for rounding stays the host's.
float to_unit_length(float c, float s) noexcept {
    const float squares = c * c + s * s;
    return std::fabs(squares - 1.0f) <= 1e-5f || !(squares > 0.0f) ? 1.0f : 1.0f / std::sqrt(squares);
}

}  // namespace

std::shared_ptr<const KeyShifts::Cells> KeyShifts::read_cells(const CacheShift& shift) {
    if (last_cells_ != nullptr && last_cells_->input == shift.distances &&
        std::int64_t(last_cells_->kinds.size()) == shift.n_cells) {
        return last_cells_;
    }
    auto cells = std::make_shared<Cells>();
    cells->input = shift.distances;
    cells->kinds.resize(std::size_t(shift.n_cells));
    const std::int32_t* values = shift.distances;
    std::unordered_map<std::int32_t, std::uint32_t> kinds;
    std::int32_t last = 0;
    std::uint32_t last_kind = 0;
    for (std::size_t i = 0; i < cells->kinds.size(); ++i) {
        if (values[i] != last) {
            last = values[i];
            last_kind = 0;
            if (last != 0) {
                const auto [at, is_new] = kinds.emplace(last, std::uint32_t(kinds.size() + 1));
                if (is_new) {
                    cells->positions.push_back(last);
                    cells->distances.push_back(last);
                }
                last_kind = at->second;
            }
        }
        cells->kinds[i] = last_kind;
    }
    last_cells_ = cells;
    return cells;
}

// What the host's own ROPE, with all its parameters, makes of the pair (1, 0): cosine and sine for every
// distance.
ggml_status KeyShifts::read_turns(const ggml_tensor* op, const CacheShift& shift, const Cells& cells,
                                  std::vector<float>& turns) {
    const std::size_t n = cells.positions.size(), width = shift.row_width;
    const auto n_pairs = std::size_t(shift.pairs.n_pairs);
    const auto channel = [&](std::size_t pair, std::size_t which) {
        return shift.first_channel + (shift.pairs.interleaved ? 2 * pair + which : pair + which * n_pairs);
    };
    std::vector<float> in(n * width), out(n * width);
    for (std::size_t i = 0; i < n; ++i) {
        for (std::size_t pair = 0; pair < n_pairs; ++pair) in[i * width + channel(pair, 0)] = 1.0f;
    }
    Graph graph(1);
    HostRope rope(op, n, in.data(), out.data(), cells.positions.data());
    graph.add(rope.node());
    const ggml_status status = cpu_.compute(graph.get(), false);
    if (status != GGML_STATUS_SUCCESS) return status;
    turns.resize(n * 2 * n_pairs);
    for (std::size_t i = 0; i < n; ++i) {
        for (std::size_t pair = 0; pair < n_pairs; ++pair) {
            const float c = out[i * width + channel(pair, 0)], s = out[i * width + channel(pair, 1)];
            const float scale = to_unit_length(c, s);
            turns[2 * i * n_pairs + pair] = c * scale;
            turns[(2 * i + 1) * n_pairs + pair] = s * scale;
        }
    }
    return GGML_STATUS_SUCCESS;
}

ggml_status KeyShifts::add(const ggml_tensor* op, const CacheShift& node) {
    auto pending = std::make_unique<Pending>();
    pending->lock = std::unique_lock<std::recursive_mutex>(node.buffer->mutex);
    pending->tensor = node.entry->tensor.get();
    for (const auto& earlier : pending_) {
        if (earlier->tensor == pending->tensor) {  // two in a row
            commit();
            break;
        }
    }
    pending->cells = read_cells(node);
    const Cells& cells = *pending->cells;
    if (cells.positions.empty()) return GGML_STATUS_SUCCESS;
    const ggml_status status = read_turns(op, node, cells, pending->turns);
    if (status != GGML_STATUS_SUCCESS) return status;
    KeyShift shift;
    shift.pairs = node.pairs;
    shift.head_dim = node.head_dim;
    shift.n_head = pending->tensor->config().row_elements / shift.head_dim;
    shift.kinds = cells.kinds.data();
    shift.turns = pending->turns.data();
    shift.distances = cells.distances.data();
    shift.n_turns = int(cells.distances.size());
    pending_.reserve(pending_.size() + 1);
    pending->tensor->plan_shift(shift);
    pending_.push_back(std::move(pending));
    return GGML_STATUS_SUCCESS;
}

void KeyShifts::commit() noexcept {
    for (const auto& pending : pending_) pending->tensor->commit_shift();
    pending_.clear();
    last_cells_.reset();
}

void KeyShifts::abandon() noexcept {
    for (const auto& pending : pending_) pending->tensor->abandon_shift();
    pending_.clear();
    last_cells_.reset();
}

}  // namespace mixed_kv::plugin
