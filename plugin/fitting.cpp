#include "fitting.h"

#include <algorithm>
#include <atomic>
#include <map>
#include <vector>

#include "kv_buffer.h"
#include "memory_estimate.h"
#include "thread_state.h"

namespace mixed_kv::plugin {
namespace {

constexpr double kMiB = 1024.0 * 1024.0;
// --fit leaves this much free unless --fit-target says otherwise; a host cannot be asked.
constexpr double kFitTarget = 1024 * kMiB;
constexpr double kPlenty = 1024.0 * 1024.0 * 1024.0 * kMiB;
// Never given away: programs need memory for more than caches.
constexpr double kKept = 1024 * kMiB;
// A little above what records really take (docs/memory.md), so that what is chosen here passes the limit.
constexpr double kRecordsPerPage = 48, kRecordsPerTensor = 2048, kTrackerPerCell = 10, kTrackerPerPage = 64;

// What a budget sets aside for graphs of 512 rows (budget.cpp).
constexpr double kPagesAtWork = 26;

struct Counted {
    StoredTensor tensor;
    int layer;
    bool operator==(const Counted& other) const noexcept {
        return layer == other.layer && tensor.role == other.tensor.role &&
               tensor.n_cells == other.tensor.n_cells;
    }
};

struct Measurement {
    std::vector<Counted> counted;
    bool did_not_fit = false;
    bool weight_shown = false, wrapped_weight_shown = false;
    unsigned caches_before = 0;  // caches made when it did not fit
};
ThreadState<Measurement> measurement;
std::atomic<unsigned> n_caches_made{0};

// F16 bytes that are declared, and bytes that are really taken, with at most n cells per stream.
struct Size {
    double declared = 0, taken = 0;
};
Size size_of(const std::vector<Counted>& counted, const Settings& settings, std::int64_t n) {
    Size size;
    double largest_page = 0;
    std::map<std::pair<std::int64_t, int>, bool> trackers;
    for (Counted item : counted) {
        StoredTensor& tensor = item.tensor;
        tensor.n_cells = std::min(tensor.n_cells, n);
        const double cells = double(tensor.n_cells) * tensor.n_stream, pages = cells / kPageTokens + 1;
        size.declared += double(tensor.row_bytes) * cells;
        size.taken += expected_memory(tensor, settings, tensor.n_cells).total();
        if (!tensor.mixed) continue;
        size.taken += kRecordsPerTensor + kRecordsPerPage * pages;
        if (settings.budget) {
            const double page = double(tensor.row_bytes) * kPageTokens;
            size.taken += page;
            largest_page = std::max(largest_page, page);
        }
        if (trackers.emplace(std::pair(tensor.n_cells, tensor.n_stream), true).second)
            size.taken += kTrackerPerCell * cells + kTrackerPerPage * pages;
    }
    size.taken += kPagesAtWork * largest_page;
    return size;
}

const ColdFormat* format_of(const Counted& item, const Settings& settings, int n_layers) {
    if (settings.allocation != nullptr) {
        (void)settings.allocation->format(item.tensor.role, item.layer,
                                          int(item.tensor.row_bytes / sizeof(fp16_t)));
    }
    return settings.format(item.tensor.role, item.layer, n_layers);
}

}  // namespace

void note_counted(const ggml_tensor* tensor) noexcept {
    Measurement* state = measurement.get();
    const std::optional<CacheTensor> shown = cache_tensor(tensor);
    if (state == nullptr || !shown) return;
    Counted item;
    item.layer = shown->layer;
    item.tensor.role = shown->role;
    item.tensor.row_bytes = shown->row_bytes;
    item.tensor.n_cells = shown->n_cells;
    item.tensor.n_stream = shown->n_stream;
    item.tensor.mixed = shown->is_f16;
    // Tensors are counted over and over: for graphs, for the log, for the measurement.
    auto& counted = state->counted;
    if (std::find(counted.begin(), counted.end(), item) != counted.end()) return;
    try {
        counted.push_back(item);
    } catch (const std::bad_alloc&) {  // then it is not known, as with hosts that do not measure
        counted.clear();
    }
}

void note_weight() noexcept {
    if (Measurement* state = measurement.get()) state->weight_shown = true;
}

void note_wrapped_weight() noexcept {
    if (Measurement* state = measurement.get()) state->wrapped_weight_shown = true;
}

void note_cache() noexcept { n_caches_made.fetch_add(1, std::memory_order_relaxed); }

std::optional<std::size_t> free_for_counted(std::size_t available, const Settings& settings) {
    Measurement* state = measurement.get();
    if (state == nullptr || state->counted.empty()) return std::nullopt;
    std::vector<Counted> counted = std::move(state->counted);
    state->counted.clear();
    int n_layers = 0;
    std::int64_t most_cells = 0;
    for (const Counted& item : counted) {
        n_layers = std::max(n_layers, item.layer + 1);
        most_cells = std::max(most_cells, item.tensor.n_cells);
    }
    for (Counted& item : counted) {
        if (item.tensor.mixed) item.tensor.format = format_of(item, settings, n_layers);
    }

    const double kept = std::min(kKept, double(available) / 2);
    const double budget = std::min(double(memory_for_caches(available, settings)), double(available) - kept);
    const auto fits = [&](std::int64_t n) { return size_of(counted, settings, n).taken <= budget; };
    state->did_not_fit = !fits(most_cells);
    state->caches_before = n_caches_made.load(std::memory_order_relaxed);
    if (!state->did_not_fit) return std::size_t(size_of(counted, settings, most_cells).declared + kPlenty);
    std::int64_t fitting = 0;
    for (std::int64_t step = std::int64_t(1) << 40; step > 0; step /= 2) {
        if (fitting + step < most_cells && fits(fitting + step)) fitting += step;
    }
    return std::size_t(size_of(counted, settings, fitting).declared + kFitTarget);
}

bool is_wrapped() noexcept {
    Measurement* state = measurement.get();
    if (state == nullptr) return false;
    const bool wrapped = state->wrapped_weight_shown;
    state->wrapped_weight_shown = false;
    return wrapped;
}

bool is_fitted_away() noexcept {
    Measurement* state = measurement.get();
    if (state == nullptr) return false;
    state->counted.clear();  // of an earlier context
    const bool fewer_layers = !state->weight_shown;
    state->weight_shown = false;
    return fewer_layers && state->did_not_fit &&
           state->caches_before == n_caches_made.load(std::memory_order_relaxed);
}

}  // namespace mixed_kv::plugin
