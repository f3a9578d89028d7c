#include "mixed-kv-stress/cell_model.h"

#include <algorithm>
#include <limits>

namespace mixed_kv::tools {

namespace {

bool in_range(llama_pos position, llama_pos p0, llama_pos p1) {
    return position >= std::max(p0, 0) && position < (p1 < 0 ? std::numeric_limits<llama_pos>::max() : p1);
}

}  // namespace

void CellModel::add(llama_token token, llama_pos position, const std::vector<llama_seq_id>& sequences) {
    cells_.push_back({token, position, {sequences.begin(), sequences.end()}});
}

void CellModel::settle() {
    std::erase_if(cells_, [](const Cell& cell) { return cell.sequences.empty(); });
    for (llama_seq_id s = 0; s < n_sequences(); ++s) {
        if (empty(s)) pure_[static_cast<std::size_t>(s)] = true;
    }
}

void CellModel::remove(llama_seq_id sequence, llama_pos p0, llama_pos p1) {
    for (llama_seq_id s = 0; s < n_sequences(); ++s) {
        if (sequence >= 0 && s != sequence) continue;
        // What stays behind a removed cell has seen it.
        llama_pos first_removed = std::numeric_limits<llama_pos>::max(), last_left = -1;
        for (Cell& cell : cells_) {
            if (cell.sequences.count(s) == 0) continue;
            if (in_range(cell.position, p0, p1)) {
                first_removed = std::min(first_removed, cell.position);
                cell.sequences.erase(s);
            } else {
                last_left = std::max(last_left, cell.position);
            }
        }
        if (last_left >= first_removed) pure_[static_cast<std::size_t>(s)] = false;
    }
    settle();
}

void CellModel::copy(llama_seq_id from, llama_seq_id to, llama_pos p0, llama_pos p1, bool shared) {
    const bool was_empty = empty(to);
    if (shared) {
        for (Cell& cell : cells_) {
            if (cell.sequences.count(from) != 0 && in_range(cell.position, p0, p1)) cell.sequences.insert(to);
        }
    } else {
        remove(to, -1, -1);
        std::vector<Cell> copies;
        for (const Cell& cell : cells_) {
            if (cell.sequences.count(from) != 0) copies.push_back({cell.token, cell.position, {to}});
        }
        cells_.insert(cells_.end(), copies.begin(), copies.end());
    }
    pure_[static_cast<std::size_t>(to)] = pure(from) && (!shared || (was_empty && p0 <= 0));
    settle();
}

void CellModel::keep(llama_seq_id sequence, bool shared) {
    if (!shared) return;
    for (Cell& cell : cells_) {
        if (cell.sequences.count(sequence) != 0) {
            cell.sequences = {sequence};
        } else {
            cell.sequences.clear();
        }
    }
    settle();
}

void CellModel::shift(llama_seq_id sequence, llama_pos p0, llama_pos p1, llama_pos delta) {
    if (delta == 0) return;
    for (Cell& cell : cells_) {
        if (cell.sequences.count(sequence) == 0 || !in_range(cell.position, p0, p1)) continue;
        for (const llama_seq_id s : cell.sequences) pure_[static_cast<std::size_t>(s)] = false;
        cell.position += delta;
        if (cell.position < 0) cell.sequences.clear();
    }
    settle();
}

void CellModel::divide(llama_seq_id sequence, llama_pos p0, llama_pos p1, int divisor) {
    if (divisor == 1) return;
    for (Cell& cell : cells_) {
        if (cell.sequences.count(sequence) == 0 || !in_range(cell.position, p0, p1)) continue;
        for (const llama_seq_id s : cell.sequences) pure_[static_cast<std::size_t>(s)] = false;
        cell.position /= divisor;
    }
}

void CellModel::clear() {
    cells_.clear();
    settle();
}

void CellModel::restore(llama_seq_id sequence, const std::vector<Cell>& cells, bool pure) {
    remove(sequence, -1, -1);
    for (const Cell& cell : cells) cells_.push_back({cell.token, cell.position, {sequence}});
    pure_[static_cast<std::size_t>(sequence)] = pure;
    settle();
}

void CellModel::distrust() {
    for (llama_seq_id s = 0; s < n_sequences(); ++s) pure_[static_cast<std::size_t>(s)] = empty(s);
}

std::vector<CellModel::Cell> CellModel::sequence(llama_seq_id sequence) const {
    std::vector<Cell> result;
    for (const Cell& cell : cells_) {
        if (cell.sequences.count(sequence) != 0) result.push_back(cell);
    }
    std::stable_sort(result.begin(), result.end(),
                     [](const Cell& a, const Cell& b) { return a.position < b.position; });
    return result;
}

bool CellModel::empty(llama_seq_id sequence) const { return last(sequence) < 0; }

llama_pos CellModel::first(llama_seq_id sequence) const {
    llama_pos first = -1;
    for (const Cell& cell : cells_) {
        if (cell.sequences.count(sequence) != 0 && (first < 0 || cell.position < first))
            first = cell.position;
    }
    return first;
}

llama_pos CellModel::last(llama_seq_id sequence) const {
    llama_pos last = -1;
    for (const Cell& cell : cells_) {
        if (cell.sequences.count(sequence) != 0) last = std::max(last, cell.position);
    }
    return last;
}

std::size_t CellModel::n_cells(llama_seq_id sequence) const {
    return static_cast<std::size_t>(std::count_if(
        cells_.begin(), cells_.end(), [&](const Cell& cell) { return cell.sequences.count(sequence) != 0; }));
}

}  // namespace mixed_kv::tools
