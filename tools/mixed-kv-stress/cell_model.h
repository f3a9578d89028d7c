#pragma once

#include <llama.h>

#include <cstdint>
#include <set>
#include <vector>

namespace mixed_kv::tools {

// What a llama.cpp cache should hold: tokens, their positions and sequences, without any storage. In a
// unified cache a cell may belong to several sequences and moves for all of them; in a cache of streams every
// cell has one.
class CellModel {
  public:
    struct Cell {
        llama_token token;
        llama_pos position;
        std::set<llama_seq_id> sequences;
        bool operator==(const Cell&) const = default;
    };
    explicit CellModel(int n_sequences) : pure_(static_cast<std::size_t>(n_sequences), true) {}

    void add(llama_token token, llama_pos position, const std::vector<llama_seq_id>& sequences);
    // As llama_memory_seq_*: p0 < 0 means from 0, p1 < 0 means to the end. sequence -1 in remove: any.
    void remove(llama_seq_id sequence, llama_pos p0, llama_pos p1);
    // shared: unified cache, cells gain a sequence; otherwise the target's cells become copies of the
    // source's.
    void copy(llama_seq_id from, llama_seq_id to, llama_pos p0, llama_pos p1, bool shared);
    // shared: a unified cache. Otherwise llama.cpp looks at the sequence's own stream alone: others keep
    // theirs.
    void keep(llama_seq_id sequence, bool shared);
    void shift(llama_seq_id sequence, llama_pos p0, llama_pos p1, llama_pos delta);
    void divide(llama_seq_id sequence, llama_pos p0, llama_pos p1, int divisor);
    void clear();
    // Replaces what a sequence holds by cells saved before.
    void restore(llama_seq_id sequence, const std::vector<Cell>& cells, bool pure);

    // What is held now came through a coarser cache: no fresh context holds the same rows.
    void distrust();

    int n_sequences() const { return static_cast<int>(pure_.size()); }
    std::vector<Cell> sequence(llama_seq_id sequence) const;  // in order of position
    bool empty(llama_seq_id sequence) const;
    bool all_empty() const { return cells_.empty(); }
    llama_pos first(llama_seq_id sequence) const;  // -1 when empty
    llama_pos last(llama_seq_id sequence) const;   // -1 when empty
    std::size_t n_cells() const { return cells_.size(); }
    // Cells that a new token of this sequence has to share room with: all (unified) or the sequence's own.
    std::size_t n_cells(llama_seq_id sequence) const;
    // Every token was run when the sequence held exactly the tokens before it, at the positions that they
    // have now: a fresh context fed the same tokens holds the same rows.
    bool pure(llama_seq_id sequence) const { return pure_[static_cast<std::size_t>(sequence)]; }

  private:
    void settle();  // drops cells without sequences; empty sequences are pure again

    std::vector<Cell> cells_;
    std::vector<bool> pure_;
};

}  // namespace mixed_kv::tools
