#include "support/isas.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <sstream>

#include "mixed_kv/isa.h"

namespace mixed_kv::test {

namespace {

std::vector<std::string> required_isas() {
    std::vector<std::string> names;
    const char* list = std::getenv("MIXED_KV_REQUIRE_ISA");
    std::stringstream in(list == nullptr ? "" : list);
    for (std::string name; std::getline(in, name, ',');) {
        if (!name.empty()) names.push_back(name);
    }
    return names;
}

}  // namespace

std::vector<std::string> isas_to_test() {
    std::vector<std::string> names;
    for (const std::string_view name : compiled_isas()) names.emplace_back(name);
    // Required but not even compiled in: listed, so that it fails.
    for (const std::string& name : required_isas()) {
        if (std::find(names.begin(), names.end(), name) == names.end()) names.push_back(name);
    }
    return names;
}

const kernels::KernelSet* find_isa(const std::string& name) {
    const auto supported = supported_isas();
    if (std::find(supported.begin(), supported.end(), name) != supported.end()) return &kernel_set(name);
    const auto required = required_isas();
    if (std::find(required.begin(), required.end(), name) != required.end()) {
        ADD_FAILURE() << "MIXED_KV_REQUIRE_ISA asks for " << name << ", which this CPU or build lacks";
    }
    return nullptr;
}

}  // namespace mixed_kv::test
