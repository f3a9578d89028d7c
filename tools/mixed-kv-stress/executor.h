#pragma once

#include <memory>
#include <vector>

#include "mixed-kv-stress/pair.h"
#include "mixed-kv-stress/run.h"

namespace mixed_kv::tools {

// Carries out operations on several pairs of contexts.
class Executor {
  public:
    Executor(const Subject& subject, const RunOptions& options, Figures& figures);
    ~Executor();

    // Throws Mismatch. Checks follow every operation: positions always, logits and rows often.
    void apply(const Op& op);
    void plant_fault();

    // What has been done so far and not been taken yet, one line per step, with the pair's number.
    std::vector<std::string> take_log();

  private:
    void perform(const Op& op, std::size_t index, Random& random);
    void check(Pair& pair, Random& random);
    void decode_batch(Pair& pair, Random& random, int max_tokens);
    void decode_shared(Pair& pair, Random& random);
    void abort_decode(Pair& pair, Random& random);
    void remove_some(Pair& pair, OpKind kind, Random& random);
    void copy(Pair& pair, Random& random);
    void move(Pair& pair, OpKind kind, Random& random);
    void save(Pair& pair, bool whole, Random& random);
    const SavedState* pick_saved(const Pair& pair, bool whole, bool damaged, Random& random) const;
    void restore(Pair& pair, bool whole, bool damaged, Random& random);
    void fragment(Pair& pair, Random& random);
    bool have_opening(Pair& pair, llama_seq_id s, int at_least, Random& random);
    void requests(Pair& pair, Random& random);
    void park(Pair& pair, Random& random);
    void endless(Pair& pair, Random& random);

    Subject subject_;
    RunOptions options_;
    Figures& figures_;
    std::vector<std::unique_ptr<Pair>> pairs_;
    std::vector<std::size_t> logged_;  // lines taken, per pair
    std::vector<std::string> log_;
    std::vector<SavedState> saved_;
    llama_context* fresh_ = nullptr;
};

}  // namespace mixed_kv::tools
