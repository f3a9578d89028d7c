#pragma once

#include <llama.h>

#include <cstdint>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "mixed-kv-stress/cell_model.h"
#include "mixed-kv-stress/comparison.h"
#include "mixed-kv-stress/operations.h"
#include "mixed_kv_api.h"

namespace mixed_kv::tools {

// The two caches, or a cache and the model of it, do not agree.
class Mismatch : public std::runtime_error {
  public:
    using std::runtime_error::runtime_error;
};

// The model under test, loaded twice: with the host's own cache and with the plugin's.
struct Subject {
    llama_model* host = nullptr;
    llama_model* ours = nullptr;
    const mixed_kv_api* plugin = nullptr;
    int n_layer = 1;
    double attention_sigma = 2.0;
    bool has_values = true;       // MLA stores keys only
    bool sliding_window = false;  // only the newest rows of some layers exist: no partial removals or copies
};

// Figures of a run.
struct Figures {
    std::uint64_t comparisons = 0, fresh_comparisons = 0, row_comparisons = 0;
    std::uint64_t own_comparisons = 0;  // with the host's attention over our rows
    std::uint64_t kept_rows = 0;        // compared bit for bit with what they were many operations before
    double max_nmse = 0;                // of logits
    double max_nmse_exact = 0;          // of logits where storage is exact
    double max_nmse_own = 0;            // of logits beside the host's attention over our rows
    double max_share = 0;               // of a bound, logits and rows
    double max_row_share = 0;
};

struct PairOptions {
    std::uint32_t n_ctx = 512, n_ubatch = 32;
    int n_sequences = 1, n_threads = 1;
    bool unified = true;
    int window = 16, sinks = 4;
    std::string key_format = "q8", value_format = "q8";
    // Instead of formats: a share of F16 in percent, and the ladder below f16. 0: no budget.
    int budget = 0;
    std::vector<std::string> ladder;

    static PairOptions random(Random& random, int n_threads, bool with_budget);
    std::string settings() const;
    std::string text() const;
    bool exact() const;
};

// One token of a batch.
struct PairToken {
    llama_token token;
    llama_pos position;
    std::vector<llama_seq_id> sequences;
};

struct SavedState {
    bool whole = false;
    int n_stream = 1, n_sequences = 1;
    std::string settings;  // of the pair that saved it
    llama_seq_id sequence = 0;
    std::vector<std::uint8_t> host, ours;
    std::vector<CellModel::Cell> cells;  // of the sequence
    bool pure = true;
    CellModel model{1};  // whole
    double encodings = 1;
};

// Two contexts that go through the same operations, and what they should hold.
//
// The host's own F16 cache is the oracle for every operation: a fresh context fed the surviving tokens holds
// other rows once a middle was removed or rows were shifted, because rows of later layers have seen what is
// gone and a shift rounds. Where no such thing has happened, a fresh context is asked as well.
class Pair {
  public:
    Pair(const Subject& subject, const PairOptions& options, Figures& figures);
    ~Pair();
    Pair(const Pair&) = delete;
    Pair& operator=(const Pair&) = delete;

    const PairOptions& options() const { return options_; }
    const CellModel& cells() const { return cells_; }
    Tolerance tolerance() const;
    int n_stream() const { return options_.unified ? 1 : options_.n_sequences; }
    std::size_t room(llama_seq_id sequence) const;
    bool can_shift() const;
    // A shift or a copy between streams that the next decode will carry out.
    bool pending() const { return pending_; }

    // False when both contexts found no room. Compares the logits of every token.
    bool decode(const std::vector<PairToken>& batch);
    bool append(llama_seq_id sequence, int n, Random& random);
    void abort_decode(const std::vector<PairToken>& batch, int checks);
    void remove(llama_seq_id sequence, llama_pos p0, llama_pos p1);
    void copy(llama_seq_id from, llama_seq_id to, llama_pos p0, llama_pos p1);
    void keep(llama_seq_id sequence);
    void shift(llama_seq_id sequence, llama_pos p0, llama_pos p1, llama_pos delta);
    void divide(llama_seq_id sequence, llama_pos p0, llama_pos p1, int divisor);
    void clear(bool data);
    SavedState save(bool whole, llama_seq_id sequence);
    void restore(const SavedState& state, llama_seq_id sequence, bool swap_owner);
    void device_round_trip(llama_seq_id sequence, int n_dropped, Random& random);
    void damaged_restore(const SavedState& state, llama_seq_id sequence, Random& random);
    void odd_bytes(Random& random);
    void overwrite_row();  // plants a fault in the plugin's cache: later checks must find it

    // One token more for every sequence, compared and removed again.
    void probe(Random& random);
    void check_metadata() const;
    // All caches together are within their budgets, when all of them have one.
    void check_budget() const;
    void check_rows();
    // Rows of our cache at positions below `end` of a sequence, by position, all tensors of a row in one.
    // Between moments at which nobody has written them, each may have changed once, when it was rounded;
    // where storage is exact, never.
    using KeptRows = std::map<std::int32_t, std::vector<std::vector<std::uint8_t>>>;
    KeptRows kept_rows(llama_seq_id sequence, llama_pos end) const;
    void check_kept(const std::vector<KeptRows>& moments);
    // The sequence's tokens in a fresh context of the host, when they must hold the same rows.
    void check_fresh(llama_context* fresh, Random& random);
    // The next token of a sequence over our own rows, which another context of the host gets as a state.
    void check_own_rows(Random& random);

    const std::vector<std::string>& log() const { return log_; }

  private:
    llama_context_params context_params() const;
    int run(llama_context* context, const std::vector<PairToken>& batch, std::vector<float>& logits) const;
    void compare_logits(const std::vector<float>& expected, const std::vector<float>& actual, double bound,
                        bool exact, const char* what);
    void settle_refusal(bool whole, llama_seq_id sequence);
    void note(const std::string& line) { log_.push_back(line); }
    llama_memory_t host_memory() const { return llama_get_memory(host_); }
    llama_memory_t our_memory() const { return llama_get_memory(ours_); }
    static bool on_node(ggml_tensor* node, bool ask, void* self);

    const Subject& subject_;
    PairOptions options_;
    Figures& figures_;
    CellModel cells_;
    llama_context *host_ = nullptr, *ours_ = nullptr;
    llama_context* own_rows_ = nullptr;  // of the host, for check_own_rows; made when it is first needed
    std::vector<ggml_tensor*> tensors_;  // of the plugin's cache, as its first graph showed them
    std::size_t n_vocab_ = 0;
    double encodings_ = 1;
    int shifts_ = 0;
    bool pending_ = false;
    std::vector<std::string> log_;
};

}  // namespace mixed_kv::tools
