#include "mixed-kv-stress/pair.h"

#include <fmt/format.h>
#include <ggml-backend.h>

#include <algorithm>
#include <array>
#include <cstring>

// Two contexts side by side: creation, decoding and what is compared. Operations are in pair_operations.cpp.
namespace mixed_kv::tools {

namespace {

constexpr int kWindowOverAll = 1048576;

int bits_of(const std::string& format) { return format == "f16" ? 16 : std::stoi(format.substr(1)); }

}  // namespace

PairOptions PairOptions::random(Random& random, int n_threads, bool with_budget) {
    PairOptions o;
    o.n_threads = n_threads;
    o.n_sequences = std::array{1, 2, 3, 4}[std::size_t(random.between(0, 3))];
    o.unified = o.n_sequences == 1 || random.one_in(2);
    o.n_ctx = random.one_in(3) ? 512 : 256;
    if (!o.unified) o.n_ctx = 256 * std::uint32_t(o.n_sequences);
    o.n_ubatch = std::array{8u, 16u, 32u, 64u}[std::size_t(random.between(0, 3))];
    o.sinks = std::array{0, 1, 4, 8}[std::size_t(random.between(0, 3))];
    o.window = std::array{0, 8, 16, 32, 64, 100}[std::size_t(random.between(0, 5))];
    const auto format = [&] {
        constexpr std::array kFormats{"q8", "q8", "q8", "q4", "q4", "q6", "q5", "q3", "q2", "f16"};
        return kFormats[std::size_t(random.between(0, int(kFormats.size()) - 1))];
    };
    o.key_format = format();
    o.value_format = format();
    switch (random.between(0, 4)) {
        case 0:
            o.window = kWindowOverAll;
            break;
        case 1:
            o.key_format = o.value_format = "f16";
            break;
        default:
            break;
    }
    if (with_budget) {
        if (o.window == kWindowOverAll) o.window = 16;
        constexpr std::array<std::array<const char*, 3>, 3> kLadders{
            {{"q8", "q6", "q5"}, {"q8", "q4", ""}, {"q8", "q4", "q3"}}};
        for (const char* rung : kLadders[std::size_t(random.between(0, 2))]) {
            if (*rung != 0) o.ladder.emplace_back(rung);
        }
        o.budget = int(random.between(35, 80));
        o.key_format = o.value_format = o.ladder.back();
    }
    return o;
}

std::string PairOptions::settings() const {
    if (budget > 0) {
        std::string text = fmt::format("window={},sinks={},budget={}%,ladder=f16", window, sinks, budget);
        for (const std::string& format : ladder) text += ',' + format;
        return text;
    }
    return fmt::format("window={},sinks={},k={},v={}", window, sinks, key_format, value_format);
}

bool PairOptions::exact() const {
    return window == kWindowOverAll || (key_format == "f16" && value_format == "f16");
}

std::string PairOptions::text() const {
    return fmt::format("n_ctx={} n_seq={} {} n_ubatch={} {}", n_ctx, n_sequences,
                       unified ? "unified" : "streams", n_ubatch, settings());
}

Pair::Pair(const Subject& subject, const PairOptions& options, Figures& figures)
    : subject_(subject), options_(options), figures_(figures), cells_(options.n_sequences) {
    note("create " + options.text());
    n_vocab_ = std::size_t(llama_vocab_n_tokens(llama_model_get_vocab(subject.host)));
    char error[256] = "";
    const auto configure = [&] {
        if (subject.plugin->configure(options_.settings().c_str(), error, sizeof error) == 0)
            throw std::runtime_error(error);
    };
    configure();
    llama_context_params params = context_params();
    host_ = llama_init_from_model(subject.host, params);
    params.cb_eval = on_node;
    params.cb_eval_user_data = this;
    ours_ = llama_init_from_model(subject.ours, params);
    // Windows and sinks of short contexts may need more.
    while (ours_ == nullptr && options_.budget > 0 && options_.budget < 100) {
        options_.budget = std::min(100, options_.budget + 10);
        configure();
        ours_ = llama_init_from_model(subject.ours, params);
    }
    if (host_ == nullptr || ours_ == nullptr) {
        llama_free(host_);
        llama_free(ours_);
        throw Mismatch("a context could not be created: " + options.text());
    }
}

llama_context_params Pair::context_params() const {
    llama_context_params params = llama_context_default_params();
    params.n_ctx = options_.n_ctx;
    params.n_batch = 512;
    params.n_ubatch = options_.n_ubatch;
    params.n_seq_max = std::uint32_t(options_.n_sequences);
    params.kv_unified = options_.unified;
    params.n_threads = params.n_threads_batch = options_.n_threads;
    params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
    params.swa_full = false;
    return params;
}

Pair::~Pair() {
    llama_free(own_rows_);
    llama_free(ours_);
    llama_free(host_);
}

bool Pair::on_node(ggml_tensor* node, bool ask, void* self) {
    auto* pair = static_cast<Pair*>(self);
    if (!ask || node->op != GGML_OP_FLASH_ATTN_EXT) return false;
    for (const ggml_tensor* view : {node->src[1], node->src[2]}) {
        ggml_tensor* root = view->view_src;
        auto& known = pair->tensors_;
        if (root != nullptr && std::find(known.begin(), known.end(), root) == known.end())
            known.push_back(root);
    }
    return false;
}

Tolerance Pair::tolerance() const {
    Tolerance t;
    t.key_bits = bits_of(options_.key_format);
    t.value_bits = bits_of(options_.value_format);
    if (!subject_.has_values) t.value_bits = t.key_bits;  // V is a view of K
    t.exact = options_.exact();
    t.n_layer = subject_.n_layer;
    t.attention_sigma = subject_.attention_sigma;
    t.encodings = encodings_ + (options_.budget > 0 ? double(options_.ladder.size()) - 1 : 0);
    t.shifts = shifts_;
    return t;
}

std::size_t Pair::room(llama_seq_id sequence) const {
    const std::size_t used = options_.unified ? cells_.n_cells() : cells_.n_cells(sequence);
    const std::size_t all =
        options_.unified ? options_.n_ctx : options_.n_ctx / std::uint32_t(options_.n_sequences);
    return all - std::min(all, used);
}

bool Pair::can_shift() const { return llama_memory_can_shift(host_memory()); }

int Pair::run(llama_context* context, const std::vector<PairToken>& batch, std::vector<float>& logits) const {
    llama_batch b = llama_batch_init(std::int32_t(batch.size()), 0, options_.n_sequences);
    b.n_tokens = std::int32_t(batch.size());
    for (std::size_t i = 0; i < batch.size(); ++i) {
        b.token[i] = batch[i].token;
        b.pos[i] = batch[i].position;
        b.n_seq_id[i] = std::int32_t(batch[i].sequences.size());
        std::copy(batch[i].sequences.begin(), batch[i].sequences.end(), b.seq_id[i]);
        b.logits[i] = 1;
    }
    const int status = llama_decode(context, b);
    logits.clear();
    for (std::size_t i = 0; status == 0 && i < batch.size(); ++i) {
        const float* row = llama_get_logits_ith(context, std::int32_t(i));
        logits.insert(logits.end(), row, row + n_vocab_);
    }
    llama_batch_free(b);
    return status;
}

void Pair::compare_logits(const std::vector<float>& expected, const std::vector<float>& actual, double bound,
                          bool exact, const char* what) {
    ++figures_.comparisons;
    const std::size_t n_rows = expected.size() / n_vocab_;
    for (std::size_t row = 0; row < n_rows; ++row) {
        const double error = nmse(std::span(expected).subspan(row * n_vocab_, n_vocab_),
                                  std::span(actual).subspan(row * n_vocab_, n_vocab_));
        figures_.max_nmse = std::max(figures_.max_nmse, error);
        if (exact) figures_.max_nmse_exact = std::max(figures_.max_nmse_exact, error);
        figures_.max_share = std::max(figures_.max_share, error / bound);
        if (!(error <= bound))
            throw Mismatch(fmt::format("logits of {} (token {} of {}): NMSE {:.3g}, bound {:.3g}", what, row,
                                       n_rows, error, bound));
    }
}

bool Pair::decode(const std::vector<PairToken>& batch) {
    std::vector<float> expected, actual;
    const int host_status = run(host_, batch, expected);
    const int our_status = run(ours_, batch, actual);
    note(fmt::format("decode {} tokens, first {} at {} of sequence {}: status {}", batch.size(),
                     batch.front().token, batch.front().position, batch.front().sequences.front(),
                     host_status));
    if (host_status != our_status)
        throw Mismatch(fmt::format("llama_decode returns {} for the host's cache and {} for ours",
                                   host_status, our_status));
    pending_ = false;
    if (host_status == 1) return false;
    if (host_status != 0) throw Mismatch(fmt::format("llama_decode fails with {}", host_status));
    for (const PairToken& t : batch) cells_.add(t.token, t.position, t.sequences);
    compare_logits(expected, actual, tolerance().logits(), options_.exact(), "a batch");
    return true;
}

void Pair::probe(Random& random) {
    std::vector<PairToken> batch;
    for (llama_seq_id s = 0; s < cells_.n_sequences(); ++s) {
        if (!cells_.empty(s) && room(s) > batch.size())
            batch.push_back({llama_token(random.between(3, int(n_vocab_) - 1)), cells_.last(s) + 1, {s}});
    }
    if (batch.empty()) return;
    std::vector<float> expected, actual;
    const int host_status = run(host_, batch, expected);
    const int our_status = run(ours_, batch, actual);
    pending_ = false;
    note(fmt::format("probe: status {}", host_status));
    if (host_status != our_status)
        throw Mismatch(fmt::format("a probe: llama_decode returns {} for the host's cache and {} for ours",
                                   host_status, our_status));
    if (host_status != 0) return;
    compare_logits(expected, actual, tolerance().logits(), options_.exact(), "a probe");
    for (const PairToken& t : batch) {
        llama_memory_seq_rm(host_memory(), t.sequences[0], t.position, -1);
        llama_memory_seq_rm(our_memory(), t.sequences[0], t.position, -1);
    }
}

void Pair::check_metadata() const {
    for (llama_seq_id s = 0; s < cells_.n_sequences(); ++s) {
        const llama_pos host_first = llama_memory_seq_pos_min(host_memory(), s);
        const llama_pos our_first = llama_memory_seq_pos_min(our_memory(), s);
        const llama_pos host_last = llama_memory_seq_pos_max(host_memory(), s);
        const llama_pos our_last = llama_memory_seq_pos_max(our_memory(), s);
        if (host_first != our_first || host_last != our_last)
            throw Mismatch(fmt::format("sequence {} is [{}, {}] in the host's cache, [{}, {}] in ours", s,
                                       host_first, host_last, our_first, our_last));
        const bool first_is_known = !subject_.sliding_window;
        if ((first_is_known && host_first != cells_.first(s)) || host_last != cells_.last(s))
            throw Mismatch(fmt::format("sequence {} is [{}, {}] in both caches, [{}, {}] in the model", s,
                                       host_first, host_last, cells_.first(s), cells_.last(s)));
    }
}

void Pair::check_rows() {
    // A shift or copy between streams that is still to come has moved positions, but no rows.
    if (pending_ || cells_.all_empty()) return;
    const auto whole = [](llama_context* context) {
        std::vector<std::uint8_t> state(llama_state_get_size(context));
        state.resize(llama_state_get_data(context, state.data(), state.size()));
        return state;
    };
    RowsError error;
    try {
        error = compare_states(whole(host_), whole(ours_), true, subject_.has_values, tolerance());
    } catch (const std::runtime_error& e) {
        throw Mismatch(e.what());
    }
    ++figures_.row_comparisons;
    figures_.max_row_share = std::max(figures_.max_row_share, error.worst > 1e100 ? 0 : error.worst);
    if (!(error.worst <= 1))
        throw Mismatch(
            fmt::format("{}: NMSE {:.3g}, {:.3g} times its bound", error.where, error.nmse, error.worst));
}

void Pair::check_budget() const {
    if (options_.budget == 0) return;
    mixed_kv_counters c = {};
    subject_.plugin->counters(&c);
    std::vector<mixed_kv_tensor_info> tensors(subject_.plugin->tensors(nullptr, 0));
    subject_.plugin->tensors(tensors.data(), tensors.size());
    std::uint64_t spare = 0;  // a page of each tensor
    for (const mixed_kv_tensor_info& t : tensors)
        spare += std::uint64_t(64 * 2) * std::uint64_t(t.n_head) * std::uint64_t(t.head_dim);
    const std::uint64_t held = c.hot_bytes + c.cold_bytes + c.overlay_bytes;
    if (held > c.budget_bytes + spare)
        throw Mismatch(fmt::format("{} bytes of pages, budgets allow {} and {} of spare room", held,
                                   c.budget_bytes, spare));
}

Pair::KeptRows Pair::kept_rows(llama_seq_id sequence, llama_pos end) const {
    std::vector<std::uint8_t> state(llama_state_seq_get_size(ours_, sequence));
    state.resize(llama_state_seq_get_data(ours_, state.data(), state.size(), sequence));
    KeptRows rows = rows_by_position(state, subject_.has_values);
    rows.erase(rows.lower_bound(end), rows.end());
    return rows;
}

void Pair::check_kept(const std::vector<KeptRows>& moments) {
    std::map<std::pair<std::int32_t, std::size_t>, int> changes;  // by position and tensor
    for (std::size_t i = 1; i < moments.size(); ++i) {
        figures_.kept_rows += moments[i].size();
        if (moments[i].size() != moments[0].size())
            throw Mismatch(fmt::format("{} of {} kept rows are there", moments[i].size(), moments[0].size()));
        for (const auto& [position, tensors] : moments[i]) {
            const auto& before = moments[i - 1].at(position);
            for (std::size_t t = 0; t < tensors.size(); ++t) {
                if (tensors[t] == before[t]) continue;
                const int n = ++changes[{position, t}];
                const int most = options_.budget > 0 ? int(options_.ladder.size()) : 1;
                if (n > most || options_.exact())
                    throw Mismatch(
                        fmt::format("the row at position {}, which nobody wrote, has changed {} times "
                                    "(tensor {} of its layers)",
                                    position, n, t));
            }
        }
    }
}

void Pair::check_fresh(llama_context* fresh, Random& random) {
    const auto s = llama_seq_id(random.between(0, cells_.n_sequences() - 1));
    if (cells_.empty(s) || !cells_.pure(s) || room(s) == 0 || subject_.sliding_window) return;
    std::vector<PairToken> tokens;
    for (const auto& cell : cells_.sequence(s)) {
        if (cell.position != llama_pos(tokens.size())) return;
        tokens.push_back({cell.token, cell.position, {0}});
    }
    const PairToken next{llama_token(random.between(3, int(n_vocab_) - 1)), llama_pos(tokens.size()), {0}};
    tokens.push_back(next);
    if (tokens.size() > 512) return;
    llama_memory_clear(llama_get_memory(fresh), true);
    std::vector<float> all, host, actual;
    if (run(fresh, tokens, all) != 0) throw Mismatch("a fresh context fails");
    const std::vector<PairToken> batch{{next.token, next.position, {s}}};
    if (run(host_, batch, host) != 0) return;
    if (run(ours_, batch, actual) != 0) throw Mismatch("a decode fails in our cache only");
    pending_ = false;
    note(fmt::format("compare sequence {} with a fresh context", s));
    llama_memory_seq_rm(host_memory(), s, next.position, -1);
    llama_memory_seq_rm(our_memory(), s, next.position, -1);
    const std::vector<float> expected(all.end() - std::ptrdiff_t(n_vocab_), all.end());
    ++figures_.fresh_comparisons;
    const Tolerance t = tolerance();
    compare_logits(expected, actual, t.logits(), false, "the next token, beside a fresh context");
}

void Pair::check_own_rows(Random& random) {
    const auto s = llama_seq_id(random.between(0, cells_.n_sequences() - 1));
    if (pending_ || cells_.empty(s) || room(s) == 0) return;
    std::vector<std::uint8_t> state(llama_state_seq_get_size(ours_, s));
    state.resize(llama_state_seq_get_data(ours_, state.data(), state.size(), s));
    const PairToken next{llama_token(random.between(3, int(n_vocab_) - 1)), cells_.last(s) + 1, {s}};
    std::vector<float> host, actual, expected;
    if (run(host_, {next}, host) != 0) return;
    if (run(ours_, {next}, actual) != 0) throw Mismatch("a decode fails in our cache only");
    const KeptRows after = kept_rows(s, next.position);
    llama_memory_seq_rm(host_memory(), s, next.position, -1);
    llama_memory_seq_rm(our_memory(), s, next.position, -1);
    // Rows that this very token let grow cold were attended to as what they were before, or as what they are.
    const KeptRows before = rows_by_position(state, subject_.has_values);
    for (const auto& [position, rows] : after) {
        if (const auto found = before.find(position); found == before.end() || found->second != rows) return;
    }
    if (own_rows_ == nullptr) own_rows_ = llama_init_from_model(subject_.host, context_params());
    if (own_rows_ == nullptr) throw std::runtime_error("the host's own context could not be created");
    llama_memory_clear(llama_get_memory(own_rows_), true);
    if (llama_state_seq_set_data(own_rows_, state.data(), state.size(), s) == 0)
        throw Mismatch("a context of the host refuses a state of ours");
    if (run(own_rows_, {next}, expected) != 0) throw Mismatch("a context of the host fails over our rows");
    note(fmt::format("compare sequence {} with the host over our rows", s));
    ++figures_.own_comparisons;
    const double error = nmse(expected, actual);
    figures_.max_nmse_own = std::max(figures_.max_nmse_own, error);
    if (!(error <= Tolerance::kOwnRowsNmse))
        throw Mismatch(
            fmt::format("logits of the next token, beside the host over our rows: NMSE {:.3g}, bound "
                        "{:.3g}",
                        error, Tolerance::kOwnRowsNmse));
}

}  // namespace mixed_kv::tools
