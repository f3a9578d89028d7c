#include "budget.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "cache/budget_shares.h"
#include "memory_estimate.h"
#include "mixed_kv/error.h"

namespace mixed_kv::plugin {
namespace {

constexpr double kMiB = 1024.0 * 1024.0;
constexpr double kTolerance = 0.01;  // of a budget, and at least 1 MiB
// llama.cpp's default number of rows per graph; more count when the host has shown them.
constexpr std::int64_t kUsualRows = 512;

// What caches with one budget hold, in bytes.
struct Held {
    std::vector<KvEntry*> entries;  // that the budget is divided among
    std::vector<cache::BudgetClaim> claims;
    double f16 = 0;     // declared
    double lowest = 0;  // pages at full length, on the lowest rung
    double spare = 0;   // one page per tensor, so that nobody has to wait for room
    double work = 0;    // rows of a graph beyond the window, in one layer at a time
    double records = 0;

    double overhead(double budget) const {
        const double reuse = std::clamp(budget / 128, 65536.0, kMiB);  // that the arena keeps
        return records + work + spare + reuse;
    }
    // For pages, of a budget. Overhead has the tolerance before it takes from the budget.
    double for_pages(double budget) const {
        const double tolerance = std::max(kTolerance * budget, kMiB);
        return std::min(budget, budget + tolerance - overhead(budget));
    }
    bool fits(double budget) const { return lowest <= for_pages(budget); }
};

double pages_of(const KvEntry& entry, const ColdFormat* format, const Settings& settings,
                std::int64_t n_rows) {
    StoredTensor tensor = stored_tensor(entry);
    tensor.format = format;
    return expected_memory(tensor, settings, n_rows).total();
}

void add(Held& held, KvBuffer& cache, std::int64_t n_rows) {
    const std::lock_guard<std::recursive_mutex> lock(cache.mutex);
    double work = 0;
    for (const auto& entry : cache.entries()) {
        if (!entry->mixed() || !entry->expected_pin.empty()) continue;
        const Settings& settings = cache.settings();
        const std::int64_t n = std::min(entry->n_cells, n_rows);
        const double page = double(entry->row_bytes) * kPageTokens;
        held.entries.push_back(entry.get());
        held.claims.push_back(
            {pages_of(*entry, nullptr, settings, n), pages_of(*entry, settings.ladder.back(), settings, n)});
        held.lowest += held.claims.back().lowest;
        held.f16 += double(entry->row_bytes) * double(n) * entry->n_stream;
        held.spare += page;
        held.records += double(entry->tensor->memory().bookkeeping);
        const std::int64_t rows = std::min(n, std::max(entry->most_rows, kUsualRows));
        work = std::max(work, page * (double(rows) / kPageTokens + 1 + cache::kPagesInStep));
    }
    held.work += 2 * work;  // K and V
    held.records += double(cache.tracker_bytes());
}

Held held_by(const std::vector<KvBuffer*>& caches, const Budget& budget, std::int64_t n_rows) {
    Held held;
    for (KvBuffer* cache : caches) {
        if (cache->settings().budget == budget) add(held, *cache, n_rows);
    }
    return held;
}

// Tries numbers from the largest power of two down: the largest below `most` that passes.
template <typename Passes>
std::int64_t largest_that(std::int64_t most, Passes&& passes) {
    std::int64_t found = 0;
    for (std::int64_t step = std::int64_t(1) << 40; step > 0; step /= 2) {
        if (found + step < most && passes(found + step)) found += step;
    }
    return found;
}

[[noreturn]] void refuse(const std::vector<KvBuffer*>& caches, const Settings& settings, const Held& held) {
    // Tenths of a MiB, or of a percent.
    const bool is_share = settings.budget.share > 0;
    const auto tenths = [&](std::int64_t n) {
        Budget budget;
        (is_share ? budget.share : budget.mebibytes) = double(n) / (is_share ? 1000 : 10);
        return budget.bytes(held.f16);
    };
    const std::int64_t enough =
        1 + largest_that(std::int64_t(1) << 40, [&](std::int64_t n) { return !held.fits(tenths(n)); });
    const std::int64_t n_rows = largest_that(std::int64_t(1) << 40, [&](std::int64_t n) {
        const Held shorter = held_by(caches, settings.budget, n);
        return shorter.fits(settings.budget.bytes(shorter.f16));
    });
    std::string less;
    if (n_rows > 0) less = ", a context of at most " + std::to_string(n_rows) + " tokens";
    if (settings.ladder.back() != &cold_formats().back())
        less += ", or a ladder (GGML_MIXED_KV_LADDER) down to less than " +
                std::string(settings.ladder.back()->name);
    char line[512];
    std::snprintf(
        line, sizeof line,
        "GGML_MIXED_KV_BUDGET_MB=%s: refused, all caches would take at least %.1f MiB when full, all old "
        "rows in %s; a budget of %.1f%s%s would do",
        budget_text(settings.budget).c_str(),
        (held.lowest + held.overhead(settings.budget.bytes(held.f16))) / kMiB,
        std::string(settings.ladder.back()->name).c_str(), double(enough) / 10, is_share ? "%" : " MiB",
        less.c_str());
    throw Error(line);
}

}  // namespace

void share_budgets(const std::vector<KvBuffer*>& caches) {
    std::vector<Budget> done;
    for (KvBuffer* cache : caches) {
        const Settings& settings = cache->settings();
        if (!settings.budget || std::find(done.begin(), done.end(), settings.budget) != done.end()) continue;
        done.push_back(settings.budget);
        const Held held = held_by(caches, settings.budget, INT64_MAX);
        if (held.entries.empty()) continue;
        const double bytes = settings.budget.bytes(held.f16);
        const std::vector<double> shares = cache::share_budget(held.for_pages(bytes), held.claims);
        if (shares.empty()) refuse(caches, settings, held);
        for (KvBuffer* each : caches) {
            if (!(each->settings().budget == settings.budget)) continue;
            const std::lock_guard<std::recursive_mutex> lock(each->mutex);
            unsigned turn = 0;
            for (const auto& entry : each->entries()) {
                const auto at = std::find(held.entries.begin(), held.entries.end(), entry.get());
                if (at == held.entries.end()) continue;
                const auto i = std::size_t(at - held.entries.begin());
                KvTensor::Allowance allowance;
                if (shares[i] < held.claims[i].exact) {
                    allowance.bytes = std::size_t(shares[i]);
                    allowance.at_once = allowance.bytes + entry->row_bytes * kPageTokens;
                }
                allowance.turn = turn++;
                entry->tensor->set_allowance(allowance);
            }
        }
    }
}

double allowed_bytes(const KvBuffer& cache) {
    double bytes = 0;
    for (const auto& entry : cache.entries()) {
        if (!entry->mixed() || !entry->expected_pin.empty()) continue;
        const std::size_t allowed = entry->tensor->allowance().bytes;
        bytes += allowed == SIZE_MAX ? double(entry->size_bytes()) : double(allowed);
    }
    return bytes;
}

std::string fill_text(const KvBuffer& cache) {
    const Settings& settings = cache.settings();
    const double allowed = allowed_bytes(cache);
    std::int64_t n_cells = 0;
    for (const auto& entry : cache.entries()) n_cells = std::max(n_cells, entry->n_cells);
    // The most tokens whose cold pages can all be on a rung.
    const auto most = [&](const ColdFormat* format) {
        return largest_that(n_cells + 1, [&](std::int64_t n) {
            double bytes = 0;
            for (const auto& entry : cache.entries()) {
                if (entry->mixed() && entry->expected_pin.empty())
                    bytes += pages_of(*entry, format, settings, std::min(n, entry->n_cells));
            }
            return bytes <= allowed;
        });
    };
    std::int64_t n = most(nullptr);
    if (n >= n_cells) return "exact at full length";
    std::string text = "exact up to " + std::to_string(n) + " tokens";
    for (const ColdFormat* format : settings.ladder) {
        const bool is_first = format == settings.ladder.front();
        text += ", " + std::string(format->name) + " from " + (is_first ? "there" : std::to_string(n));
        n = most(format);
        if (n >= n_cells) break;
    }
    return text;
}

}  // namespace mixed_kv::plugin
