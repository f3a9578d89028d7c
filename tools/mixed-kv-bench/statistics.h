#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

namespace mixed_kv::tools {

// Median and quartiles of repeated measurements, linearly interpolated between order statistics.
struct Spread {
    double median = 0, q1 = 0, q3 = 0;
    std::size_t n = 0;
};

inline Spread spread_of(std::vector<double> samples) {
    Spread s;
    s.n = samples.size();
    if (samples.empty()) return s;
    std::sort(samples.begin(), samples.end());
    const auto at = [&](double fraction) {
        const double place = fraction * double(samples.size() - 1);
        const auto low = std::size_t(place);
        const std::size_t high = std::min(low + 1, samples.size() - 1);
        return samples[low] + (samples[high] - samples[low]) * (place - double(low));
    };
    s.q1 = at(0.25);
    s.median = at(0.5);
    s.q3 = at(0.75);
    return s;
}

}  // namespace mixed_kv::tools
