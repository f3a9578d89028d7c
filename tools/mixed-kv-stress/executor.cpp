#include "mixed-kv-stress/executor.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

namespace mixed_kv::tools {

namespace {

constexpr std::size_t kMaxSaved = 8;

// A sequence that holds something, or -1.
llama_seq_id pick_filled(const Pair& pair, Random& random) {
    std::vector<llama_seq_id> filled;
    for (llama_seq_id s = 0; s < pair.cells().n_sequences(); ++s) {
        if (!pair.cells().empty(s)) filled.push_back(s);
    }
    return filled.empty() ? -1 : filled[std::size_t(random.between(0, int(filled.size()) - 1))];
}

llama_seq_id pick_any(const Pair& pair, Random& random) {
    return llama_seq_id(random.between(0, pair.cells().n_sequences() - 1));
}

}  // namespace

Executor::Executor(const Subject& subject, const RunOptions& options, Figures& figures)
    : subject_(subject), options_(options), figures_(figures) {
    Random random(options.seed * 7919 + 17);
    for (int i = 0; i < options.n_pairs; ++i) {
        pairs_.push_back(std::make_unique<Pair>(
            subject_, PairOptions::random(random, options.n_threads, options.with_budget), figures_));
    }
    logged_.resize(pairs_.size());
    llama_context_params params = llama_context_default_params();
    params.n_ctx = params.n_batch = params.n_ubatch = 512;
    params.n_threads = params.n_threads_batch = options.n_threads;
    params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
    fresh_ = llama_init_from_model(subject.host, params);
    if (fresh_ == nullptr) throw std::runtime_error("the host's own context could not be created");
}

Executor::~Executor() { llama_free(fresh_); }

std::vector<std::string> Executor::take_log() {
    for (std::size_t i = 0; i < pairs_.size(); ++i) {
        const auto& lines = pairs_[i]->log();
        for (; logged_[i] < lines.size(); ++logged_[i])
            log_.push_back(fmt::format("  [{}] {}", i, lines[logged_[i]]));
    }
    return std::exchange(log_, {});
}

void Executor::plant_fault() {
    for (auto& pair : pairs_) pair->overwrite_row();
}

void Executor::apply(const Op& op) {
    Random random(op.seed);
    const auto index = std::size_t(random.between(0, int(pairs_.size()) - 1));
    perform(op, index, random);
    check(*pairs_[index], random);
}

void Executor::check(Pair& pair, Random& random) {
    pair.check_metadata();
    pair.check_budget();
    if (random.one_in(2)) pair.probe(random);
    if (random.one_in(3)) pair.check_rows();
    if (random.one_in(16)) pair.check_fresh(fresh_, random);
    if (random.one_in(8)) pair.check_own_rows(random);
}

void Executor::perform(const Op& op, std::size_t index, Random& random) {
    Pair& pair = *pairs_[index];
    switch (op.kind) {
        case OpKind::decode:
            return decode_batch(pair, random, 40);
        case OpKind::fill: {
            const llama_seq_id s = pick_any(pair, random);
            const auto n = int(pair.room(s)) * random.between(50, 100) / 100;
            if (n > 0) pair.append(s, std::min(n, 500), random);
            return;
        }
        case OpKind::generate: {
            const llama_seq_id s = pick_any(pair, random);
            for (int n = random.between(1, 8); n > 0 && pair.room(s) > 0; --n) pair.append(s, 1, random);
            return;
        }
        case OpKind::decode_shared:
            return decode_shared(pair, random);
        case OpKind::rm_tail:
        case OpKind::rm_middle:
        case OpKind::rm_sequence:
        case OpKind::rm_everything:
            return remove_some(pair, op.kind, random);
        case OpKind::copy:
            return copy(pair, random);
        case OpKind::keep:
            if (const llama_seq_id s = pick_filled(pair, random); s >= 0) pair.keep(s);
            return;
        case OpKind::shift:
        case OpKind::context_shift:
        case OpKind::divide:
            return move(pair, op.kind, random);
        case OpKind::clear_data:
            return pair.clear(true);
        case OpKind::clear_metadata:
            return pair.clear(false);
        case OpKind::save_whole:
        case OpKind::save_sequence:
            return save(pair, op.kind == OpKind::save_whole, random);
        case OpKind::restore_whole:
        case OpKind::restore_sequence:
            return restore(pair, op.kind == OpKind::restore_whole, false, random);
        case OpKind::damaged_restore:
            return restore(pair, random.one_in(2), true, random);
        case OpKind::device_round_trip: {
            const llama_seq_id s = pick_filled(pair, random);
            if (s < 0) return;
            // llama.cpp aborts when a state on the device finds no room: one that shares its cells needs new
            // ones.
            const auto cells = pair.cells().sequence(s);
            const bool shares = std::any_of(cells.begin(), cells.end(),
                                            [](const auto& cell) { return cell.sequences.size() > 1; });
            if (shares && pair.room(s) < cells.size() + 64) return;
            if (pair.pending()) pair.probe(random);
            // With a sliding window the rows that a long removal needs are gone.
            pair.device_round_trip(s, random.between(0, subject_.sliding_window ? 4 : 60), random);
            return;
        }
        case OpKind::odd_bytes:
            return pair.odd_bytes(random);
        case OpKind::fragment:
            return fragment(pair, random);
        case OpKind::requests:
            return requests(pair, random);
        case OpKind::park:
            return park(pair, random);
        case OpKind::endless:
            return endless(pair, random);
        case OpKind::abort_decode:
            return abort_decode(pair, random);
        case OpKind::recreate: {
            take_log().swap(log_);
            pairs_[index] = nullptr;
            pairs_[index] = std::make_unique<Pair>(
                subject_, PairOptions::random(random, options_.n_threads, options_.with_budget), figures_);
            logged_[index] = 0;
            return;
        }
    }
}

void Executor::decode_batch(Pair& pair, Random& random, int max_tokens) {
    // Tokens of several sequences in turn, as a server with slots sends them.
    const int n_vocab = llama_vocab_n_tokens(llama_model_get_vocab(subject_.host));
    int n = random.between(1, max_tokens);
    std::vector<llama_seq_id> sequences{pick_any(pair, random)};
    while (int(sequences.size()) < pair.cells().n_sequences() && random.one_in(2)) {
        const llama_seq_id s = pick_any(pair, random);
        if (std::find(sequences.begin(), sequences.end(), s) == sequences.end()) sequences.push_back(s);
    }
    std::vector<llama_pos> next(std::size_t(pair.cells().n_sequences()));
    std::vector<std::size_t> added(next.size());
    for (const llama_seq_id s : sequences) next[std::size_t(s)] = pair.cells().last(s) + 1;
    std::vector<PairToken> batch;
    for (std::size_t i = 0; n > 0; ++i, --n) {
        const llama_seq_id s = sequences[i % sequences.size()];
        // Sometimes more than there is room for: refused by both.
        if (added[std::size_t(s)] >= pair.room(s) + 8) break;
        batch.push_back({llama_token(random.between(3, n_vocab - 1)), next[std::size_t(s)]++, {s}});
        ++added[std::size_t(s)];
    }
    if (!batch.empty()) pair.decode(batch);
}

void Executor::decode_shared(Pair& pair, Random& random) {
    if (!pair.options().unified || pair.cells().n_sequences() < 2) return;
    // llama.cpp takes a token of two sequences only where both hold the same cells.
    const llama_seq_id a = pick_any(pair, random);
    const auto b = llama_seq_id((a + 1) % pair.cells().n_sequences());
    if (pair.cells().sequence(a) != pair.cells().sequence(b)) {
        if (subject_.sliding_window) return;
        pair.remove(b, -1, -1);
        if (!pair.cells().empty(a)) pair.copy(a, b, -1, -1);
    }
    for (const auto& cell : pair.cells().sequence(a)) {
        if (cell.sequences.count(b) == 0) return;  // the same tokens, in cells of their own
    }
    const int n_vocab = llama_vocab_n_tokens(llama_model_get_vocab(subject_.host));
    llama_pos position = pair.cells().last(a) + 1;
    std::vector<PairToken> batch;
    for (int n = std::min(random.between(1, 20), int(pair.room(a))); n > 0; --n)
        batch.push_back({llama_token(random.between(3, n_vocab - 1)), position++, {a, b}});
    if (!batch.empty()) pair.decode(batch);
}

void Executor::abort_decode(Pair& pair, Random& random) {
    const llama_seq_id s = pick_any(pair, random);
    if (pair.pending()) pair.probe(random);
    if (pair.pending()) return;
    const auto n =
        std::min<std::size_t>({std::size_t(random.between(1, 64)), pair.options().n_ubatch, pair.room(s)});
    const int n_vocab = llama_vocab_n_tokens(llama_model_get_vocab(subject_.host));
    std::vector<PairToken> batch;
    for (llama_pos position = pair.cells().last(s) + 1; batch.size() < n; ++position)
        batch.push_back({llama_token(random.between(3, n_vocab - 1)), position, {s}});
    if (!batch.empty()) pair.abort_decode(batch, random.between(0, 25));
}

void Executor::remove_some(Pair& pair, OpKind kind, Random& random) {
    const llama_seq_id s = pick_filled(pair, random);
    if (s < 0) return;
    const llama_pos last = pair.cells().last(s), first = pair.cells().first(s);
    if (kind == OpKind::rm_sequence) return pair.remove(s, -1, -1);
    if (kind == OpKind::rm_tail) {
        const int most = subject_.sliding_window ? 4 : last - first + 1;
        return pair.remove(
            s, std::max(0, last + 1 - random.between(1, random.one_in(3) ? most : std::min(most, 40))), -1);
    }
    if (subject_.sliding_window) return;
    const llama_pos p0 = random.between(first, last), p1 = random.between(p0, std::min(last + 1, p0 + 100));
    pair.remove(kind == OpKind::rm_everything ? -1 : s, p0, p1);
}

void Executor::copy(Pair& pair, Random& random) {
    const llama_seq_id from = pick_filled(pair, random);
    if (from < 0 || pair.cells().n_sequences() < 2) return;
    const auto to =
        llama_seq_id((from + random.between(1, pair.cells().n_sequences() - 1)) % pair.cells().n_sequences());
    if (!pair.options().unified) return pair.copy(from, to, -1, -1);
    pair.remove(to, -1, -1);  // a server does so too: positions must not occur twice
    const bool prefix = !subject_.sliding_window && random.one_in(2);
    pair.copy(from, to, prefix ? 0 : -1, prefix ? random.between(0, pair.cells().last(from)) : -1);
}

void Executor::move(Pair& pair, OpKind kind, Random& random) {
    const llama_seq_id s = pick_filled(pair, random);
    if (s < 0 || !pair.can_shift() || subject_.sliding_window) return;
    const llama_pos first = pair.cells().first(s), last = pair.cells().last(s);
    if (kind == OpKind::context_shift) {
        const int n_keep = random.between(0, 8), n_drop = (last + 1 - n_keep) / 2;
        if (n_drop < 1) return;
        pair.remove(s, n_keep, n_keep + n_drop);
        if (!pair.cells().empty(s)) pair.shift(s, n_keep + n_drop, -1, -n_drop);
        return;
    }
    const llama_pos p0 = random.between(first, last),
                    p1 = random.one_in(2) ? -1 : random.between(p0, last + 1);
    // Positions stay small, so that rotations stay comparable.
    if (kind == OpKind::shift) return pair.shift(s, p0, p1, random.between(-p0, last > 4000 ? 0 : 40));
    pair.divide(s, p0, p1, random.between(2, 4));
}

void Executor::save(Pair& pair, bool whole, Random& random) {
    if (pair.pending()) pair.probe(random);
    const llama_seq_id s = pick_filled(pair, random);
    if (s < 0 || pair.pending()) return;
    SavedState state = pair.save(whole, s);
    if (saved_.size() < kMaxSaved) {
        saved_.push_back(std::move(state));
    } else {
        saved_[std::size_t(random.between(0, int(kMaxSaved) - 1))] = std::move(state);
    }
}

const SavedState* Executor::pick_saved(const Pair& pair, bool whole, bool damaged, Random& random) const {
    std::vector<const SavedState*> fitting;
    for (const SavedState& state : saved_) {
        const bool same_shape =
            state.n_stream == pair.n_stream() && (!whole || state.n_sequences == pair.options().n_sequences);
        // A state of another number of streams must be refused by both; now and then it is tried.
        if (state.whole == whole && (same_shape || (!damaged && random.one_in(8)))) fitting.push_back(&state);
    }
    return fitting.empty() ? nullptr : fitting[std::size_t(random.between(0, int(fitting.size()) - 1))];
}

void Executor::restore(Pair& pair, bool whole, bool damaged, Random& random) {
    const SavedState* state = pick_saved(pair, whole, damaged, random);
    if (state == nullptr) return;
    if (whole && state->n_sequences != pair.options().n_sequences) return;
    if (pair.pending()) pair.probe(random);
    const llama_seq_id s = pick_any(pair, random);
    if (damaged) {
        pair.damaged_restore(*state, s, random);
    } else {
        // A state is F16 rows whoever wrote it: the host takes one that our cache saved. Between caches of
        // other settings it must: the rows of a coarser one would differ from the host's by more than this
        // one may.
        pair.restore(*state, s, state->settings != pair.options().text() || random.one_in(4));
    }
}

void Executor::fragment(Pair& pair, Random& random) {
    if (pair.cells().n_sequences() < 2) return decode_batch(pair, random, 40);
    for (int round = random.between(1, 4); round > 0; --round) decode_batch(pair, random, 40);
    for (llama_seq_id s = random.between(0, 1); s < pair.cells().n_sequences(); s += 2) {
        if (!pair.cells().empty(s)) pair.remove(s, -1, -1);
    }
    for (int round = random.between(1, 3); round > 0; --round) decode_batch(pair, random, 60);
}

// Something of a sequence to keep, and room behind it. False: there is none.
bool Executor::have_opening(Pair& pair, llama_seq_id s, int at_least, Random& random) {
    if (pair.pending()) pair.probe(random);
    if (pair.pending() || subject_.sliding_window) return false;
    const int missing = at_least - (pair.cells().last(s) + 1);
    if (missing > 0 && (int(pair.room(s)) < missing || !pair.append(s, missing, random))) return false;
    return pair.room(s) >= 8;
}

void Executor::requests(Pair& pair, Random& random) {
    const llama_seq_id s = pick_any(pair, random);
    if (!have_opening(pair, s, random.between(5, 80), random)) return;
    const llama_pos opening = pair.cells().last(s) + 1;
    const auto request = [&] {
        if (pair.cells().last(s) >= opening) pair.remove(s, opening, -1);
        const int n = std::min(random.between(1, 150), int(pair.room(s)));
        if (n > 0) pair.append(s, n, random);
    };
    std::vector<Pair::KeptRows> moments;
    for (int n = random.between(6, 16); n > 0; --n) {
        request();
        moments.push_back(pair.kept_rows(s, opening));
    }
    pair.check_kept(moments);
}

void Executor::park(Pair& pair, Random& random) {
    const llama_seq_id s = pick_filled(pair, random);
    if (s < 0 || subject_.sliding_window) return;
    if (pair.pending()) pair.probe(random);
    if (pair.pending()) return;
    for (int n = random.between(2, 6); n > 0; --n) {
        const SavedState state = pair.save(false, s);
        pair.remove(s, -1, -1);
        if (pair.cells().n_sequences() > 1) {
            const auto other = llama_seq_id((s + 1) % pair.cells().n_sequences());
            const int room = int(pair.room(other)) - int(state.cells.size());
            if (room > 0) pair.append(other, std::min(room, random.between(1, 40)), random);
        }
        pair.restore(state, s, false);
        if (pair.cells().empty(s)) return;  // no room
    }
}

void Executor::endless(Pair& pair, Random& random) {
    const llama_seq_id s = pick_any(pair, random);
    if (!pair.can_shift() || !have_opening(pair, s, random.between(70, 160), random)) return;
    const int n_keep = random.between(1, 60), n_drop = random.between(4, 40);
    std::vector<Pair::KeptRows> moments;
    for (int n = random.between(3, 12); n > 0; --n) {
        if (pair.cells().last(s) + 1 < n_keep + n_drop + 1) break;
        pair.remove(s, n_keep, n_keep + n_drop);
        pair.shift(s, n_keep + n_drop, -1, -n_drop);
        const int room = std::min(n_drop, int(pair.room(s)));
        if (room < 1 || !pair.append(s, room, random)) break;
        moments.push_back(pair.kept_rows(s, n_keep));
    }
    pair.check_kept(moments);
}

}  // namespace mixed_kv::tools
