#pragma once

#include <string>
#include <vector>

#include "kernels/contract.h"

namespace mixed_kv::test {

// Kernel sets to test: every one compiled in, so that those this CPU lacks show up as skipped tests.
std::vector<std::string> isas_to_test();

// The set, or null when this CPU lacks it; then the test must skip. Where MIXED_KV_REQUIRE_ISA (names
// separated by commas) asks for it, a missing set is a test failure instead.
const kernels::KernelSet* find_isa(const std::string& name);

}  // namespace mixed_kv::test
