#include "rope_shift.h"

#include <algorithm>
#include <cmath>
#include <unordered_map>

#include "graphs.h"

namespace mixed_kv::plugin {

bool rotary_pairs(const ggml_tensor* op, std::size_t row_offset, RotaryPairs& pairs, int& head_dim) {
    const int n_dims = op->op_params[1], mode = op->op_params[2], first = op->op_params[15];
    if (mode != GGML_ROPE_TYPE_NORMAL && mode != GGML_ROPE_TYPE_NEOX) return false;
    head_dim = int(op->nb[1] / sizeof(fp16_t));
    pairs.first = int(row_offset / sizeof(fp16_t)) + first;  // partial rotations may start inside a head
    pairs.n_pairs = n_dims / 2;
    pairs.interleaved = mode == GGML_ROPE_TYPE_NORMAL;
    return op->nb[0] == sizeof(fp16_t) && op->nb[1] % sizeof(fp16_t) == 0 && n_dims > 0 &&
           pairs.first + n_dims <= head_dim && first + n_dims <= op->ne[0];
}

namespace {

// YaRN's attention factor is part of a key since it was written; a key that moves must not get it again
// (docs/adr/0022-a-row-is-rounded-once.md). A turn that has length 1 but for rounding stays the host's.
float to_unit_length(float c, float s) noexcept {
    const float squares = c * c + s * s;
    return std::fabs(squares - 1.0f) <= 1e-5f || !(squares > 0.0f) ? 1.0f : 1.0f / std::sqrt(squares);
}

}  // namespace

std::shared_ptr<const KeyShifts::Cells> KeyShifts::read_cells(const ggml_tensor* shifts) {
    if (last_cells_ != nullptr && last_cells_->input == shifts->data &&
        std::int64_t(last_cells_->kinds.size()) == shifts->ne[0]) {
        return last_cells_;
    }
    auto cells = std::make_shared<Cells>();
    cells->input = shifts->data;
    cells->kinds.resize(std::size_t(shifts->ne[0]));
    const auto* values = static_cast<const std::int32_t*>(shifts->data);
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
ggml_status KeyShifts::read_turns(const ggml_tensor* op, const RotaryPairs& pairs, const Cells& cells,
                                  std::vector<float>& turns) {
    const std::size_t n = cells.positions.size(), width = std::size_t(op->ne[0]);
    const auto first = std::size_t(op->op_params[15]), n_pairs = std::size_t(pairs.n_pairs);
    const auto channel = [&](std::size_t pair, std::size_t which) {
        return first + (pairs.interleaved ? 2 * pair + which : pair + which * n_pairs);
    };
    std::vector<float> in(n * width), out(n * width);
    for (std::size_t i = 0; i < n; ++i) {
        for (std::size_t pair = 0; pair < n_pairs; ++pair) in[i * width + channel(pair, 0)] = 1.0f;
    }
    Graph graph(1);
    ggml_tensor rope = *op, rows = *op->src[0], positions = *op->src[1];
    for (ggml_tensor* t : {&rope, &rows}) {
        t->type = GGML_TYPE_F32;
        t->ne[1] = 1;
        t->ne[2] = std::int64_t(n);
        t->nb[0] = sizeof(float);
        t->nb[1] = t->nb[2] = width * sizeof(float);
        t->nb[3] = n * width * sizeof(float);
    }
    positions.ne[0] = std::int64_t(n);
    for (ggml_tensor* t : {&rope, &rows, &positions}) {
        t->view_src = nullptr;
        t->buffer = nullptr;
    }
    rope.data = out.data();
    rows.data = in.data();
    positions.data = const_cast<std::int32_t*>(cells.positions.data());
    rope.src[0] = &rows;
    rope.src[1] = &positions;
    graph.add(&rope);
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

ggml_status KeyShifts::add(ggml_tensor* op) {
    KvBuffer& buffer = *KvBuffer::buffer_of(op);
    auto pending = std::make_unique<Pending>();
    pending->lock = std::unique_lock<std::recursive_mutex>(buffer.mutex);
    KvEntry& entry = *KvBuffer::entry_of(op);
    pending->tensor = entry.tensor.get();
    for (const auto& earlier : pending_) {
        if (earlier->tensor == pending->tensor) {  // two in a row
            commit();
            break;
        }
    }
    pending->cells = read_cells(op->src[1]);
    const Cells& cells = *pending->cells;
    if (cells.positions.empty()) return GGML_STATUS_SUCCESS;
    KeyShift shift;
    const auto offset = std::size_t(static_cast<std::byte*>(op->data) - entry.base);
    rotary_pairs(op, offset, shift.pairs, shift.head_dim);
    const ggml_status status = read_turns(op, shift.pairs, cells, pending->turns);
    if (status != GGML_STATUS_SUCCESS) return status;
    shift.n_head = entry.tensor->config().row_elements / shift.head_dim;
    shift.kinds = cells.kinds.data();
    shift.turns = pending->turns.data();
    shift.distances = cells.distances.data();
    shift.n_turns = int(cells.distances.size());
    pending_.reserve(pending_.size() + 1);
    entry.tensor->plan_shift(shift);
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
