#include <fmt/format.h>
#include <ggml-backend.h>

#include <algorithm>
#include <cstring>

#include "mixed-kv-stress/pair.h"

// What is done to both contexts of a pair and to the model of their cells.
namespace mixed_kv::tools {

bool Pair::append(llama_seq_id sequence, int n, Random& random) {
    std::vector<PairToken> batch;
    llama_pos position = cells_.last(sequence) + 1;
    for (int i = 0; i < n; ++i)
        batch.push_back({llama_token(random.between(3, int(n_vocab_) - 1)), position++, {sequence}});
    return batch.empty() || decode(batch);
}

// One ubatch, so that llama.cpp itself removes all of it when it is aborted, and we otherwise.
void Pair::abort_decode(const std::vector<PairToken>& batch, int checks) {
    const auto countdown = [](void* left) { return --*static_cast<int*>(left) < 0; };
    std::vector<float> ignored;
    int status[2] = {0, 0};
    for (const bool ours : {false, true}) {
        llama_context* context = ours ? ours_ : host_;
        int left = checks;
        llama_set_abort_callback(context, countdown, &left);
        status[ours ? 1 : 0] = run(context, batch, ignored);
        llama_set_abort_callback(context, nullptr, nullptr);
        if (const int s = status[ours ? 1 : 0]; s != 0 && s != 1 && s != 2)
            throw Mismatch(
                fmt::format("an aborted decode returns {} in {} cache", s, ours ? "our" : "the host's"));
    }
    note(fmt::format("decode {} tokens of sequence {}, aborted after {} checks: status {} and {}",
                     batch.size(), batch[0].sequences[0], checks, status[0], status[1]));
    // A shift that an abort has interrupted is begun again by the next decode. In the host's own cache it
    // goes over rows that have moved already (ours moves all layers or none). Such a decode is not made.
    for (const PairToken& t : batch) {
        llama_memory_seq_rm(host_memory(), t.sequences[0], t.position, -1);
        llama_memory_seq_rm(our_memory(), t.sequences[0], t.position, -1);
    }
}

void Pair::remove(llama_seq_id sequence, llama_pos p0, llama_pos p1) {
    note(fmt::format("seq_rm({}, {}, {})", sequence, p0, p1));
    const bool host = llama_memory_seq_rm(host_memory(), sequence, p0, p1);
    const bool ours = llama_memory_seq_rm(our_memory(), sequence, p0, p1);
    if (host != ours) throw Mismatch("seq_rm is refused by one cache only");
    if (host) cells_.remove(sequence, p0, p1);
    if (cells_.all_empty()) encodings_ = 1;
}

void Pair::copy(llama_seq_id from, llama_seq_id to, llama_pos p0, llama_pos p1) {
    note(fmt::format("seq_cp({}, {}, {}, {})", from, to, p0, p1));
    llama_memory_seq_cp(host_memory(), from, to, p0, p1);
    llama_memory_seq_cp(our_memory(), from, to, p0, p1);
    cells_.copy(from, to, p0, p1, options_.unified);
    pending_ = pending_ || !options_.unified;
}

void Pair::keep(llama_seq_id sequence) {
    note(fmt::format("seq_keep({})", sequence));
    llama_memory_seq_keep(host_memory(), sequence);
    llama_memory_seq_keep(our_memory(), sequence);
    cells_.keep(sequence, options_.unified);
}

void Pair::shift(llama_seq_id sequence, llama_pos p0, llama_pos p1, llama_pos delta) {
    note(fmt::format("seq_add({}, {}, {}, {})", sequence, p0, p1, delta));
    llama_memory_seq_add(host_memory(), sequence, p0, p1, delta);
    llama_memory_seq_add(our_memory(), sequence, p0, p1, delta);
    cells_.shift(sequence, p0, p1, delta);
    pending_ = true;
    shifts_ += 1;
}

void Pair::divide(llama_seq_id sequence, llama_pos p0, llama_pos p1, int divisor) {
    note(fmt::format("seq_div({}, {}, {}, {})", sequence, p0, p1, divisor));
    llama_memory_seq_div(host_memory(), sequence, p0, p1, divisor);
    llama_memory_seq_div(our_memory(), sequence, p0, p1, divisor);
    cells_.divide(sequence, p0, p1, divisor);
    pending_ = true;
    shifts_ += 1;
}

void Pair::clear(bool data) {
    note(fmt::format("clear({})", data));
    llama_memory_clear(host_memory(), data);
    llama_memory_clear(our_memory(), data);
    cells_.clear();
    encodings_ = 1;
    // A copy between streams that was to come still comes, and moves nothing that anybody sees.
}

SavedState Pair::save(bool whole, llama_seq_id sequence) {
    SavedState state;
    state.whole = whole;
    state.n_stream = n_stream();
    state.n_sequences = options_.n_sequences;
    state.settings = options_.text();
    state.sequence = sequence;
    state.encodings = encodings_;
    const auto get = [&](llama_context* context) {
        std::vector<std::uint8_t> bytes(whole ? llama_state_get_size(context)
                                              : llama_state_seq_get_size(context, sequence));
        const std::size_t n = whole ? llama_state_get_data(context, bytes.data(), bytes.size())
                                    : llama_state_seq_get_data(context, bytes.data(), bytes.size(), sequence);
        if (n != bytes.size()) throw Mismatch("a state is not as long as announced");
        return bytes;
    };
    state.host = get(host_);
    state.ours = get(ours_);
    state.cells = cells_.sequence(sequence);
    state.pure = cells_.pure(sequence);
    state.model = cells_;
    note(whole ? fmt::format("save the whole state ({} bytes)", state.host.size())
               : fmt::format("save sequence {} ({} bytes)", sequence, state.host.size()));
    if (state.host.size() != state.ours.size()) throw Mismatch("saved states differ in size");
    return state;
}

// Both caches refused a state. What is gone must be gone in both.
void Pair::settle_refusal(bool whole, llama_seq_id sequence) {
    bool as_modelled = true;
    for (llama_seq_id s = 0; s < cells_.n_sequences(); ++s) {
        if (!whole && s != sequence) continue;
        const llama_pos host = llama_memory_seq_pos_max(host_memory(), s);
        const llama_pos ours = llama_memory_seq_pos_max(our_memory(), s);
        if (host != ours) throw Mismatch("a refused state leaves different caches");
        if (host < 0) cells_.remove(s, -1, -1);
        as_modelled = as_modelled && host == cells_.last(s);
    }
    // A whole state that ends among the cells of a later stream leaves the streams before it restored:
    // llama.cpp's own doing, with any cache. Its caller has to clear.
    if (!as_modelled) clear(true);
}

void Pair::restore(const SavedState& state, llama_seq_id sequence, bool swap_owner) {
    note(state.whole ? fmt::format("restore a whole state{}", swap_owner ? " saved by our cache" : "")
                     : fmt::format("restore into sequence {} a state of sequence {}{}", sequence,
                                   state.sequence, swap_owner ? " saved by our cache" : ""));
    const auto set = [&](llama_context* context, const std::vector<std::uint8_t>& bytes) {
        return state.whole ? llama_state_set_data(context, bytes.data(), bytes.size())
                           : llama_state_seq_set_data(context, bytes.data(), bytes.size(), sequence);
    };
    const std::size_t host = set(host_, swap_owner ? state.ours : state.host);
    const std::size_t ours = set(ours_, state.ours);
    if ((host == 0) != (ours == 0)) throw Mismatch("a state is refused by one cache only");
    encodings_ = std::max(encodings_, state.encodings) + 1;
    if (host == 0) {
        note("  refused by both");
        settle_refusal(state.whole, sequence);
    } else if (state.whole) {
        cells_ = state.model;
        if (swap_owner) cells_.distrust();
    } else {
        cells_.restore(sequence, state.cells, state.pure && !swap_owner);
    }
}

void Pair::device_round_trip(llama_seq_id sequence, int n_dropped, Random& random) {
    const llama_state_seq_flags flags = LLAMA_STATE_SEQ_FLAGS_ON_DEVICE;
    const auto saved = cells_.sequence(sequence);
    const bool pure = cells_.pure(sequence);
    std::vector<std::uint8_t> bytes[2];
    for (const bool ours : {false, true}) {
        llama_context* context = ours ? ours_ : host_;
        auto& to = bytes[ours ? 1 : 0];
        to.resize(llama_state_seq_get_size_ext(context, sequence, flags));
        if (llama_state_seq_get_data_ext(context, to.data(), to.size(), sequence, flags) != to.size())
            throw Mismatch("a state on the device is not as long as announced");
    }
    note(fmt::format("save sequence {} on the device", sequence));
    remove(sequence, std::max(0, cells_.last(sequence) + 1 - n_dropped), -1);
    append(sequence, std::min<int>(random.between(1, 20), int(room(sequence))), random);
    const std::size_t host =
        llama_state_seq_set_data_ext(host_, bytes[0].data(), bytes[0].size(), sequence, flags);
    const std::size_t ours =
        llama_state_seq_set_data_ext(ours_, bytes[1].data(), bytes[1].size(), sequence, flags);
    note(fmt::format("restore sequence {} from the device", sequence));
    if ((host == 0) != (ours == 0)) throw Mismatch("a state on the device is refused by one cache only");
    encodings_ += 1;
    if (host == 0) {
        settle_refusal(false, sequence);
    } else {
        cells_.restore(sequence, saved, pure);
    }
}

void Pair::damaged_restore(const SavedState& state, llama_seq_id sequence, Random& random) {
    SavedState damaged = state;
    const int kind = random.between(0, 3);
    const std::size_t field = parse_state(state.host, state.whole, subject_.has_values).row_size_field;
    for (auto* bytes : {&damaged.host, &damaged.ours}) {
        Random same = random;
        if (kind == 0) {  // what follows the name or the magic
            bytes->resize(std::size_t(same.between(0, 16)));
        } else if (kind == 1) {  // in the middle of rows
            bytes->resize(std::size_t(same.between(17, int(bytes->size()) - 1)));
        } else if (kind == 2) {  // magic number, or the length of the name: as of another model
            (*bytes)[state.whole ? 4 : 0] ^= 0x55;
        } else {  // rows of another size
            (*bytes)[field] ^= 0x40;
        }
    }
    note(fmt::format("a damaged state (kind {}):", kind));
    restore(damaged, sequence, false);
}

void Pair::odd_bytes(Random& random) {
    if (tensors_.empty()) return;
    ggml_tensor* t = tensors_[std::size_t(random.between(0, int(tensors_.size()) - 1))];
    const std::size_t all = ggml_nbytes(t);
    const auto offset = std::size_t(random.between(0, int(all) - 1));
    const std::size_t size = std::min(all - offset, std::size_t(random.between(1, 5000)));
    note(fmt::format("read and write back {} bytes at {} of {}", size, offset, t->name));
    std::vector<std::uint8_t> before(all), part(size), after(all);
    ggml_backend_tensor_get(t, before.data(), 0, all);
    ggml_backend_tensor_get(t, part.data(), offset, size);
    if (std::memcmp(part.data(), before.data() + offset, size) != 0)
        throw Mismatch(fmt::format("{} bytes at {} of {} read differently alone", size, offset, t->name));
    ggml_backend_tensor_set(t, part.data(), offset, size);
    ggml_backend_tensor_get(t, after.data(), 0, all);
    encodings_ += 1;
    if (options_.exact()) {
        if (after != before) throw Mismatch("bytes written back change an exact cache");
        return;
    }
    // Pages may be encoded again: equal within the format's error, over the whole tensor.
    std::vector<float> a(all / 2), b(all / 2);
    ggml_fp16_to_fp32_row(reinterpret_cast<const ggml_fp16_t*>(before.data()), a.data(),
                          std::int64_t(a.size()));
    ggml_fp16_to_fp32_row(reinterpret_cast<const ggml_fp16_t*>(after.data()), b.data(),
                          std::int64_t(b.size()));
    const double error = nmse(a, b);
    const double bound = tolerance().rows(std::strstr(t->name, "cache_k") != nullptr, true);
    if (!(error <= bound))
        throw Mismatch(
            fmt::format("bytes written back change {}: NMSE {:.3g}, bound {:.3g}", t->name, error, bound));
}

void Pair::overwrite_row() {
    if (tensors_.empty()) return;
    ggml_tensor* t = tensors_.front();
    std::vector<ggml_fp16_t> noise(std::size_t(t->ne[0]) * 64, ggml_fp32_to_fp16(3.0f));
    note("FAULT: the first 64 rows of our " + std::string(t->name) + " are overwritten");
    ggml_backend_tensor_set(t, noise.data(), 0, noise.size() * sizeof noise[0]);
}

}  // namespace mixed_kv::tools
