#include "kqv-tensor-reader/html/choose_records.h"

#include <algorithm>
#include <cmath>
#include <map>

namespace mixed_kv::trace_tools {

namespace {

// 0 .. n - 1 so that every beginning of the list is spread over all of it: last, first, middle, quarters, ...
std::vector<size_t> spread(size_t n) {
    std::vector<size_t> order;
    std::vector<bool> taken(n, false);
    const auto take = [&](size_t i) {
        if (!taken[i]) order.push_back(i);
        taken[i] = true;
    };
    if (n == 0) return order;
    take(n - 1);
    take(0);
    for (size_t parts = 2; order.size() < n; parts *= 2) {
        for (size_t i = 1; i < parts; i += 2) take(i * (n - 1) / parts);
        if (parts >= n) {
            for (size_t i = 0; i < n; ++i) take(i);
        }
    }
    return order;
}

}  // namespace

std::vector<std::size_t> by_interest(const Report& report) {
    std::vector<size_t> failing;
    std::map<int32_t, std::vector<size_t>> steps;
    for (size_t i = 0; i < report.records.size(); ++i) {
        const RecordCheck& check = report.records[i].check;
        if (!check.checked) continue;
        if (check.pass) {
            steps[check.step].push_back(i);
        } else {
            failing.push_back(i);
        }
    }
    const auto badness = [&](size_t i) {
        const double ratio = report.records[i].check.limit_share();
        return std::isnan(ratio) ? double(INFINITY) : ratio;
    };
    std::stable_sort(failing.begin(), failing.end(),
                     [&](size_t a, size_t b) { return badness(a) > badness(b); });
    std::vector<const std::vector<size_t>*> by_step;
    for (const auto& [step, records] : steps) by_step.push_back(&records);
    std::vector<size_t> passing;
    for (const size_t i : spread(by_step.size()))
        passing.insert(passing.end(), by_step[i]->begin(), by_step[i]->end());

    std::vector<size_t> order;
    for (size_t i = 0; i < std::max(failing.size(), passing.size()); ++i) {
        if (i < failing.size()) order.push_back(failing[i]);
        if (i < passing.size()) order.push_back(passing[i]);
    }
    return order;
}

}  // namespace mixed_kv::trace_tools
