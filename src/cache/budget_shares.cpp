#include "cache/budget_shares.h"

#include <algorithm>

namespace mixed_kv::cache {

std::vector<double> share_budget(double bytes, std::span<const BudgetClaim> claims) {
    double lowest = 0, lacking = 0;
    for (const BudgetClaim& claim : claims) {
        lowest += claim.lowest;
        lacking += std::max(0.0, claim.exact - claim.lowest);
    }
    std::vector<double> shares;
    if (lowest > bytes) return shares;
    const double part = lacking > 0 ? std::min(1.0, (bytes - lowest) / lacking) : 1.0;
    for (const BudgetClaim& claim : claims)
        shares.push_back(claim.lowest + part * std::max(0.0, claim.exact - claim.lowest));
    return shares;
}

}  // namespace mixed_kv::cache
