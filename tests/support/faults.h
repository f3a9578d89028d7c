#pragma once

#include <functional>
#include <string>
#include <vector>

#include "support/attention_case.h"

namespace mixed_kv::test {

// A mistake that attention code could make, as the output that it would give. A check that accepts one of
// them is worth nothing.
struct Fault {
    std::string name;
    std::function<std::vector<float>(AttentionCase&, const kernels::KernelSet&)> output;
    // False where the case has nothing that this fault could spoil.
    std::function<bool(const CaseSpec&)> applies;
};

const std::vector<Fault>& seeded_faults();

}  // namespace mixed_kv::test
