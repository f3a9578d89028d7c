#pragma once

#include <span>
#include <vector>

namespace mixed_kv::cache {

// Pages of a tensor whose old and new storage is held at the same time while they step down.
inline constexpr int kPagesInStep = 4;

// What one tensor wants of a budget, in bytes at full length: with every row in FP16, and on the lowest rung
// of the ladder (window and sinks in FP16).
struct BudgetClaim {
    double exact = 0, lowest = 0;
};

// What each may take, in bytes: its lowest, and of what is left over as much as it lacks to exact, in
// proportion. The sum is `bytes`, or that of all exact sizes if it is less. Empty when not even the lowest
// sizes fit.
std::vector<double> share_budget(double bytes, std::span<const BudgetClaim> claims);

}  // namespace mixed_kv::cache
