#include "cache/window_reference.h"

#include <algorithm>
#include <tuple>

namespace mixed_kv::test {

void WindowReference::on_write(const std::vector<std::int64_t>& cells) {
    ++graph_;
    tokens_ = cells;
    for (const std::int64_t cell : cells) at(cell) = {++order_, graph_, true, false};
    for (int stream = 0; stream < config_.n_stream; ++stream) enforce_bound(stream);
}

void WindowReference::on_mask(const std::vector<std::vector<std::set<std::int64_t>>>& visible,
                              int first_stream, Tokens tokens) {
    const bool own = tokens == Tokens::known;
    if (tokens == Tokens::none) ++graph_;
    for (std::size_t s = 0; s < visible.size(); ++s) {
        const std::int64_t base = (first_stream + static_cast<std::int64_t>(s)) * config_.n_cells;
        const auto n_q = static_cast<std::int64_t>(visible[s].size());
        std::set<std::int64_t> seen, keep;
        for (std::int64_t q = n_q - 1; q >= 0; --q) {
            const auto& cells = visible[s][static_cast<std::size_t>(q)];
            const std::int64_t token =
                own ? tokens_[s * visible[s].size() + static_cast<std::size_t>(q)] - base : -1;
            if (own && cells.count(token) != 0 && static_cast<int>(cells.size()) <= config_.sinks) {
                at(base + token).sink = true;
            }
            if (own && seen.count(token) != 0) continue;
            std::vector<std::pair<std::uint64_t, std::int64_t>> by_age;
            for (const std::int64_t cell : cells) {
                seen.insert(cell);
                const auto found = cells_.find(base + cell);
                if (found != cells_.end() && found->second.order != 0)
                    by_age.emplace_back(found->second.order, cell);
            }
            std::sort(by_age.rbegin(), by_age.rend());
            const auto window = static_cast<std::size_t>(config_.window);
            for (std::size_t i = 0; i < by_age.size() && window > 0; ++i) {
                // Copies within a stream share a write order; they stay or go together.
                if (i < window || by_age[i].first == by_age[window - 1].first) keep.insert(by_age[i].second);
            }
        }
        for (const std::int64_t cell : seen) {
            at(base + cell).window = keep.count(cell) != 0;
            if (keep.count(cell) != 0) at(base + cell).evidence = graph_;
        }
        enforce_bound(first_stream + static_cast<int>(s));
    }
}

void WindowReference::enforce_bound(int stream) {
    const std::int64_t bound = std::max<std::int64_t>(8 * std::int64_t{config_.window}, config_.n_cells / 8);
    std::vector<std::tuple<std::uint64_t, std::uint64_t, std::int64_t>> old;
    for (const auto& [cell, state] : cells_) {
        if (cell / config_.n_cells == stream && state.window && state.evidence != graph_) {
            old.emplace_back(state.evidence, state.order, cell);
        }
    }
    std::sort(old.begin(), old.end());
    for (std::int64_t i = 0; i < static_cast<std::int64_t>(old.size()) - bound; ++i) {
        at(std::get<2>(old[static_cast<std::size_t>(i)])).window = false;
    }
}

void WindowReference::on_restore(std::int64_t first_cell, std::int64_t n_cells) {
    ++graph_;
    while (n_cells > 0) {
        const std::int64_t stream = first_cell / config_.n_cells;
        const std::int64_t n = std::min(n_cells, (stream + 1) * config_.n_cells - first_cell);
        const bool is_long = n > std::int64_t{config_.window} + config_.sinks;
        for (std::int64_t i = 0; i < n; ++i) {
            at(first_cell + i) = {++order_, graph_, !is_long || i >= n - config_.window,
                                  is_long && i < config_.sinks};
        }
        enforce_bound(static_cast<int>(stream));
        first_cell += n;
        n_cells -= n;
    }
}

void WindowReference::on_copy(std::int64_t from_cell, std::int64_t to_cell, std::int64_t n_cells) {
    if (from_cell == to_cell) return;
    const auto before = cells_;
    for (std::int64_t i = 0; i < n_cells; ++i) {
        const auto found = before.find(from_cell + i);
        at(to_cell + i) = found != before.end() ? found->second : Cell{};
    }
    for (int stream = 0; stream < config_.n_stream; ++stream) enforce_bound(stream);
}

std::string WindowReference::difference(const WindowTracker& tracker) const {
    for (int stream = 0; stream < config_.n_stream; ++stream) {
        std::int64_t n_window = 0;
        for (std::int64_t i = 0; i < config_.n_cells; ++i) {
            const auto found = cells_.find(stream * config_.n_cells + i);
            const Cell cell = found != cells_.end() ? found->second : Cell{};
            const bool window = (tracker.window_cells(stream, i / 64) >> (i % 64) & 1) != 0;
            const bool sink = (tracker.sink_cells(stream, i / 64) >> (i % 64) & 1) != 0;
            n_window += cell.window ? 1 : 0;
            if (window != cell.window || sink != cell.sink) {
                return "stream " + std::to_string(stream) + " cell " + std::to_string(i) + ": window " +
                       std::to_string(window) + " sink " + std::to_string(sink) + ", but by the rules " +
                       std::to_string(cell.window) + " " + std::to_string(cell.sink);
            }
        }
        if (n_window != tracker.n_window_cells(stream)) return "the count of window cells is wrong";
    }
    return {};
}

Mask::Mask(const std::vector<std::vector<std::set<std::int64_t>>>& visible, std::int64_t n_kv)
    : row_elements(n_kv + 5),
      n_q(static_cast<std::int64_t>(visible.at(0).size())),
      n_stream(static_cast<int>(visible.size())) {
    // What lies between rows counts as visible, should anyone look.
    data.assign(static_cast<std::size_t>(n_stream * n_q * row_elements), 0);
    for (int s = 0; s < n_stream; ++s) {
        for (std::int64_t q = 0; q < n_q; ++q) {
            fp16_t* row = data.data() + (s * n_q + q) * row_elements;
            const auto& cells = visible[static_cast<std::size_t>(s)][static_cast<std::size_t>(q)];
            for (std::int64_t t = 0; t < n_kv; ++t) row[t] = kMaskedOut;
            // Finite values (ALiBi) are visible, too.
            for (const std::int64_t t : cells) row[t] = t % 3 == 0 ? fp16_t{0xc000} : fp16_t{0};
        }
    }
}

MaskView Mask::view() const {
    const auto row_bytes = static_cast<std::ptrdiff_t>(row_elements * 2);
    return {data.data(), row_bytes, 0, row_bytes * n_q, 1, n_stream};
}

}  // namespace mixed_kv::test
