#include "mixed_kv/window_tracker.h"

#include <algorithm>
#include <bit>
#include <functional>
#include <string>
#include <utility>

#include "cache/mask_scan.h"
#include "mixed_kv/error.h"

namespace mixed_kv {

namespace {

constexpr std::uint64_t bit(std::int64_t cell) noexcept { return std::uint64_t{1} << (cell % kPageTokens); }

// Calls fn(cell) for each member of a set, where cell 0 of the set is `first`.
template <typename Fn>
void for_each_cell(std::uint64_t set, std::int64_t first, Fn&& fn) {
    for (; set != 0; set &= set - 1) fn(first + std::countr_zero(set));
}

}  // namespace

WindowTracker::WindowTracker(const Config& config) : config_(config) {
    if (config.n_cells < 1 || config.n_stream < 1 || config.window < 0 || config.sinks < 0) {
        throw Error("window tracker: cells " + std::to_string(config.n_cells) + ", streams " +
                    std::to_string(config.n_stream) + ", window " + std::to_string(config.window) +
                    ", sinks " + std::to_string(config.sinks) +
                    ": cells and streams must be positive, the rest not negative");
    }
    if (config.n_cells * config.n_stream >= config.counter_limit) {
        throw Error("window tracker: " + std::to_string(config.n_stream) + " streams of " +
                    std::to_string(config.n_cells) + " cells are more than write orders can tell apart");
    }
    pages_per_stream_ = (config.n_cells + kPageTokens - 1) / kPageTokens;
    const auto n_pages = static_cast<std::size_t>(pages_per_stream_ * config.n_stream);
    const auto n_cells = static_cast<std::size_t>(config.n_cells * config.n_stream);
    window_.resize(n_pages);
    sinks_.resize(n_pages);
    n_window_.resize(static_cast<std::size_t>(config.n_stream));
    page_newest_.resize(n_pages);
    write_order_.resize(n_cells);
    evidence_.resize(n_cells);
}

void WindowTracker::clear() {
    std::fill(window_.begin(), window_.end(), 0);
    std::fill(sinks_.begin(), sinks_.end(), 0);
    std::fill(n_window_.begin(), n_window_.end(), 0);
    std::fill(page_newest_.begin(), page_newest_.end(), 0);
    std::fill(write_order_.begin(), write_order_.end(), 0);
    std::fill(evidence_.begin(), evidence_.end(), 0);
    tokens_.clear();
    order_ = graph_ = 0;
    run_ = {};
    copy_ = {};
}

std::int64_t WindowTracker::n_window_cells(int stream) const noexcept {
    return n_window_[static_cast<std::size_t>(stream)];
}

std::size_t WindowTracker::memory_bytes() const noexcept {
    const auto bytes = [](const auto& v) { return v.capacity() * sizeof(v[0]); };
    return bytes(window_) + bytes(sinks_) + bytes(n_window_) + bytes(write_order_) + bytes(page_newest_) +
           bytes(evidence_) + bytes(tokens_) + bytes(visible_) + bytes(seen_) + bytes(keep_) +
           bytes(orders_) + bytes(oldest_) + bytes(run_.held);
}

// Order is by rank only, so ranks can stand in for the numbers when those run out.
void WindowTracker::renumber() {
    // newest: the largest number in use; becomes the largest rank.
    const auto to_ranks = [](std::vector<std::uint32_t>& numbers, std::uint32_t& newest) {
        std::vector<std::uint32_t> sorted(numbers);
        sorted.push_back(0);  // stays 0
        sorted.push_back(newest);
        std::sort(sorted.begin(), sorted.end());
        sorted.erase(std::unique(sorted.begin(), sorted.end()), sorted.end());
        for (std::uint32_t& number : numbers) {
            number = static_cast<std::uint32_t>(std::lower_bound(sorted.begin(), sorted.end(), number) -
                                                sorted.begin());
        }
        newest = static_cast<std::uint32_t>(sorted.size() - 1);
    };
    order_ = *std::max_element(write_order_.begin(), write_order_.end());
    to_ranks(write_order_, order_);
    to_ranks(evidence_, graph_);
    std::fill(page_newest_.begin(), page_newest_.end(), 0);
    for (std::size_t i = 0; i < write_order_.size(); ++i) {
        const auto cell = static_cast<std::int64_t>(i) % config_.n_cells;
        const auto stream = static_cast<std::int64_t>(i) / config_.n_cells;
        auto& newest =
            page_newest_[static_cast<std::size_t>(stream * pages_per_stream_ + cell / kPageTokens)];
        newest = std::max(newest, write_order_[i]);
    }
}

std::uint32_t WindowTracker::next_order() {
    if (order_ >= config_.counter_limit) renumber();
    return ++order_;
}

void WindowTracker::begin_graph() {
    if (graph_ >= config_.counter_limit) renumber();
    ++graph_;
    copy_ = {};
}

void WindowTracker::set_window(std::size_t page, std::uint64_t bits) noexcept {
    n_window_[page / static_cast<std::size_t>(pages_per_stream_)] +=
        std::popcount(bits) - std::popcount(window_[page]);
    window_[page] = bits;
}

// A new row in the cell: newest of all, protected until judged, no sink.
void WindowTracker::touch(std::int64_t cell) {
    const std::int64_t stream = cell / config_.n_cells;
    const std::int64_t in_stream = cell % config_.n_cells;
    const auto page = static_cast<std::size_t>(stream * pages_per_stream_ + in_stream / kPageTokens);
    const std::uint32_t order = next_order();
    write_order_[static_cast<std::size_t>(cell)] = order;
    page_newest_[page] = order;
    evidence_[static_cast<std::size_t>(cell)] = graph_;
    sinks_[page] &= ~bit(in_stream);
    set_window(page, window_[page] | bit(in_stream));
}

void WindowTracker::on_write(std::uint64_t epoch, std::span<const std::int64_t> cells) {
    if (epoch == write_epoch_) return;
    write_epoch_ = epoch;
    begin_graph();
    run_.is_open = false;
    tokens_.assign(cells.begin(), cells.end());
    for (const std::int64_t cell : cells) {
        if (cell >= 0 && cell < config_.n_cells * config_.n_stream) touch(cell);
    }
    for (int stream = 0; stream < config_.n_stream; ++stream) enforce_bound(stream);
}

void WindowTracker::on_mask(std::uint64_t epoch, const MaskView& mask, int first_stream, int n_stream,
                            std::int64_t n_q, std::int64_t n_kv) {
    if (epoch == mask_epoch_) return;
    mask_epoch_ = epoch;
    if (epoch != write_epoch_) begin_graph();
    const bool owned = epoch == write_epoch_ && static_cast<std::int64_t>(tokens_.size()) == n_stream * n_q;
    n_kv = std::min(n_kv, config_.n_cells);
    const std::int64_t n_pages = (n_kv + kPageTokens - 1) / kPageTokens;
    for (int s = 0; s < n_stream && first_stream + s < config_.n_stream; ++s) {
        const int stream = first_stream + s;
        seen_.assign(static_cast<std::size_t>(n_pages), 0);
        keep_.assign(static_cast<std::size_t>(n_pages), 0);
        // Newest first. A query whose own cell a newer query saw belongs to that query's sequence and shows
        // nothing new about windows: one sequence costs one full scan of a mask row.
        for (std::int64_t q = n_q - 1; q >= 0; --q) {
            std::int64_t own = -1;
            if (owned) {
                own = tokens_[static_cast<std::size_t>(s * n_q + q)] - stream * config_.n_cells;
                if (own < 0 || own >= n_kv) own = -1;
            }
            scan_query(mask.row(s, 0, q), stream, n_kv, own);
        }
        for (std::int64_t p = 0; p < n_pages; ++p) {
            const auto i = static_cast<std::size_t>(p);
            if (seen_[i] == 0) continue;
            const auto page = static_cast<std::size_t>(stream * pages_per_stream_ + p);
            set_window(page, (window_[page] & ~seen_[i]) | keep_[i]);
            for_each_cell(keep_[i], stream * config_.n_cells + p * kPageTokens,
                          [&](std::int64_t cell) { evidence_[static_cast<std::size_t>(cell)] = graph_; });
        }
        enforce_bound(stream);
    }
}

// One query: row is its mask, or null when it sees all n_kv cells; own is the cell of its token or -1.
void WindowTracker::scan_query(const fp16_t* row, int stream, std::int64_t n_kv, std::int64_t own) {
    const std::int64_t n_pages = (n_kv + kPageTokens - 1) / kPageTokens;
    const auto cells_of = [&](std::int64_t page) {
        const std::int64_t n = std::min<std::int64_t>(kPageTokens, n_kv - page * kPageTokens);
        if (row == nullptr) return n == kPageTokens ? ~std::uint64_t{0} : bit(n) - 1;
        return cache::visible_cells(row + page * kPageTokens, n);
    };
    const auto is_own_visible = [&] { return (cells_of(own / kPageTokens) & bit(own)) != 0; };
    const auto mark_sink = [&] {
        sinks_[static_cast<std::size_t>(stream * pages_per_stream_ + own / kPageTokens)] |= bit(own);
    };

    if (own >= 0 && (seen_[static_cast<std::size_t>(own / kPageTokens)] & bit(own)) != 0) {
        // Only the sink question is open. Visible cells lie close by, mostly before: look there first and
        // stop as soon as there are too many.
        if (config_.sinks == 0) return;
        const std::int64_t own_page = own / kPageTokens;
        int count = 0;
        for (std::int64_t p = own_page; p >= 0 && count <= config_.sinks; --p)
            count += std::popcount(cells_of(p));
        for (std::int64_t p = own_page + 1; p < n_pages && count <= config_.sinks; ++p) {
            count += std::popcount(cells_of(p));
        }
        if (count <= config_.sinks && is_own_visible()) mark_sink();
        return;
    }

    visible_.resize(static_cast<std::size_t>(n_pages));
    std::int64_t count = 0;
    std::int64_t newest_page = 0;
    std::uint32_t newest = 0;
    for (std::int64_t p = 0; p < n_pages; ++p) {
        const std::uint64_t cells = cells_of(p);
        visible_[static_cast<std::size_t>(p)] = cells;
        if (cells == 0) continue;
        seen_[static_cast<std::size_t>(p)] |= cells;
        count += std::popcount(cells);
        const std::uint32_t order = page_newest_[static_cast<std::size_t>(stream * pages_per_stream_ + p)];
        if (order >= newest) newest = order, newest_page = p;
    }
    if (own >= 0 && count <= config_.sinks && is_own_visible()) mark_sink();
    if (config_.window > 0 && count > 0) keep_newest(stream, n_pages, newest_page);
}

// Adds the last `window` cells of visible_, by write order, to keep_. Cells that were never written do not
// count.
void WindowTracker::keep_newest(int stream, std::int64_t n_pages, std::int64_t start_page) {
    const auto window = static_cast<std::size_t>(config_.window);
    const std::uint32_t* order = write_order_.data() + stream * config_.n_cells;
    const std::uint32_t* newest = page_newest_.data() + stream * pages_per_stream_;
    const auto gather = [&](std::int64_t page, std::uint32_t at_least) {
        if (newest[page] < at_least) return;
        for_each_cell(visible_[static_cast<std::size_t>(page)], page * kPageTokens, [&](std::int64_t cell) {
            if (order[cell] >= at_least) orders_.push_back(order[cell]);
        });
    };
    // The write order of the window-th newest gathered cell, or 1 when there are fewer.
    const auto threshold = [&]() -> std::uint32_t {
        if (orders_.size() < window) return 1;
        const auto nth = orders_.begin() + static_cast<std::ptrdiff_t>(window) - 1;
        std::nth_element(orders_.begin(), nth, orders_.end(), std::greater<>());
        return *nth;
    };
    // Cells are mostly written in ascending order, in a ring: going back from the newest page gives a bound
    // that usually is exact at once; then only pages written later than the bound can hold anything better.
    orders_.clear();
    for (std::int64_t i = 0; i < n_pages && orders_.size() < window; ++i) {
        gather((start_page - i + n_pages) % n_pages, 1);
    }
    const std::uint32_t bound = threshold();
    orders_.clear();
    for (std::int64_t p = 0; p < n_pages; ++p) gather(p, bound);
    const std::uint32_t exact = std::max(bound, threshold());
    for (std::int64_t p = 0; p < n_pages; ++p) {
        if (newest[p] < exact) continue;
        for_each_cell(visible_[static_cast<std::size_t>(p)], p * kPageTokens, [&](std::int64_t cell) {
            if (order[cell] >= exact) keep_[static_cast<std::size_t>(p)] |= bit(cell);
        });
    }
}

// Evidence of finished or forgotten sequences is never contradicted, so it must not pile up.
void WindowTracker::enforce_bound(int stream) {
    const std::int64_t bound = std::max<std::int64_t>(8 * std::int64_t{config_.window}, config_.n_cells / 8);
    if (n_window_cells(stream) <= bound) return;
    oldest_.clear();
    for (std::int64_t p = 0; p < pages_per_stream_; ++p) {
        for_each_cell(window_cells(stream, p), stream * config_.n_cells + p * kPageTokens,
                      [&](std::int64_t cell) {
                          const auto i = static_cast<std::size_t>(cell);
                          if (evidence_[i] != graph_) {
                              oldest_.emplace_back(std::uint64_t{evidence_[i]} << 32 | write_order_[i], cell);
                          }
                      });
    }
    const auto n_drop = static_cast<std::ptrdiff_t>(oldest_.size()) - bound;
    if (n_drop <= 0) return;
    std::nth_element(oldest_.begin(), oldest_.begin() + (n_drop - 1), oldest_.end());
    for (std::ptrdiff_t i = 0; i < n_drop; ++i) {
        const std::int64_t cell = oldest_[static_cast<std::size_t>(i)].second % config_.n_cells;
        const auto page = static_cast<std::size_t>(stream * pages_per_stream_ + cell / kPageTokens);
        set_window(page, window_[page] & ~bit(cell));
    }
}

bool WindowTracker::on_restore(std::int64_t first_cell, std::int64_t n_cells, const void* tensor) {
    const std::int64_t all = config_.n_cells * config_.n_stream;
    first_cell = std::clamp<std::int64_t>(first_cell, 0, all);
    n_cells = std::clamp<std::int64_t>(n_cells, 0, all - first_cell);
    const auto stream_of = [&](std::int64_t cell) { return static_cast<int>(cell / config_.n_cells); };
    const auto begin_run = [&](int stream) {
        run_.is_open = true;
        run_.tensor = tensor;
        run_.stream = stream;
        run_.first_cell = -1;
        run_.n_rows = 0;
        run_.held.clear();
        run_.first_held = 0;
    };
    const bool continues =
        run_.is_open && run_.tensor == tensor &&
        (n_cells == 0 || (stream_of(first_cell) == run_.stream && first_cell != run_.first_cell));
    if (!continues) begin_run(n_cells == 0 ? -1 : stream_of(first_cell));
    if (n_cells == 0) return continues;
    begin_graph();
    for (std::int64_t cell = first_cell; cell < first_cell + n_cells; ++cell) {
        if (stream_of(cell) !=
            run_.stream) {  // a range may cross streams; each part is a sequence of its own
            enforce_bound(run_.stream);
            begin_run(stream_of(cell));
        }
        if (run_.first_cell < 0) run_.first_cell = cell;
        restore_cell(cell);
    }
    enforce_bound(run_.stream);
    return continues;
}

// The next row of the restore in progress: what was protected as its end gives way to the new end.
void WindowTracker::restore_cell(std::int64_t cell) {
    touch(cell);
    ++run_.n_rows;
    run_.held.push_back(cell);
    const std::int64_t most = std::int64_t{config_.window} + config_.sinks;
    if (run_.n_rows <= most) return;
    const auto release = [&](bool is_sink) {
        const std::int64_t held = run_.held[run_.first_held++];
        const std::int64_t in_stream = held % config_.n_cells;
        const auto page = static_cast<std::size_t>(run_.stream * pages_per_stream_ + in_stream / kPageTokens);
        set_window(page, window_[page] & ~bit(in_stream));
        if (is_sink) sinks_[page] |= bit(in_stream);
    };
    for (int i = 0; i < config_.sinks && run_.n_rows == most + 1; ++i) release(true);
    release(false);
    if (run_.first_held >= 1024 && run_.first_held >= run_.held.size() / 2) {
        run_.held.erase(run_.held.begin(), run_.held.begin() + static_cast<std::ptrdiff_t>(run_.first_held));
        run_.first_held = 0;
    }
}

void WindowTracker::on_copy(std::int64_t from_cell, std::int64_t to_cell, std::int64_t n_cells,
                            const void* tensor) {
    if (copy_.from_cell == from_cell && copy_.to_cell == to_cell && copy_.n_cells == n_cells &&
        copy_.tensor != tensor)
        return;
    copy_ = {from_cell, to_cell, n_cells, tensor};
    const std::int64_t all = config_.n_cells * config_.n_stream;
    if (from_cell < 0 || to_cell < 0) return;
    n_cells = std::min({n_cells, all - from_cell, all - to_cell});
    if (n_cells <= 0 || from_cell == to_cell) return;
    const auto page_of = [&](std::int64_t cell) {
        return static_cast<std::size_t>(cell / config_.n_cells * pages_per_stream_ +
                                        cell % config_.n_cells / kPageTokens);
    };
    const bool descending = to_cell > from_cell;
    for (std::int64_t i = 0; i < n_cells; ++i) {
        const std::int64_t offset = descending ? n_cells - 1 - i : i;
        const std::int64_t from = from_cell + offset, to = to_cell + offset;
        const std::uint64_t from_bit = bit(from % config_.n_cells), to_bit = bit(to % config_.n_cells);
        const std::size_t from_page = page_of(from), to_page = page_of(to);
        write_order_[static_cast<std::size_t>(to)] = write_order_[static_cast<std::size_t>(from)];
        evidence_[static_cast<std::size_t>(to)] = evidence_[static_cast<std::size_t>(from)];
        page_newest_[to_page] = std::max(page_newest_[to_page], write_order_[static_cast<std::size_t>(to)]);
        const bool in_window = (window_[from_page] & from_bit) != 0;
        const bool is_sink = (sinks_[from_page] & from_bit) != 0;
        set_window(to_page, in_window ? window_[to_page] | to_bit : window_[to_page] & ~to_bit);
        sinks_[to_page] = is_sink ? sinks_[to_page] | to_bit : sinks_[to_page] & ~to_bit;
    }
    for (int stream = 0; stream < config_.n_stream; ++stream) enforce_bound(stream);
}

}  // namespace mixed_kv
