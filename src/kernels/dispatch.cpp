#include <cstdlib>

#include "kernels/isa_list.h"
#include "mixed_kv/error.h"
#include "mixed_kv/isa.h"

namespace mixed_kv {
namespace {

std::string join(const std::vector<std::string_view>& names) {
    std::string text;
    for (const std::string_view name : names) {
        text += text.empty() ? "" : ", ";
        text += name;
    }
    return text;
}

const kernels::KernelSet& kernel_set_for(std::string_view name, std::string_view where) {
    for (const kernels::KernelSet* set : kernels::kKernelSets) {
        if (name.empty() ? set->supported() : name == set->name) {
            if (set->supported()) {
                return *set;
            }
            throw Error(std::string(where) + ": this CPU, or its operating system, cannot run '" +
                        std::string(name) + "'; it can run: " + join(supported_isas()));
        }
    }
    throw Error(std::string(where) + ": unknown instruction set '" + std::string(name) +
                "'; valid here: " + join(supported_isas()));
}

}  // namespace

std::vector<std::string_view> supported_isas() {
    std::vector<std::string_view> names;
    for (const kernels::KernelSet* set : kernels::kKernelSets) {
        if (set->supported()) {
            names.emplace_back(set->name);
        }
    }
    return names;
}

std::vector<std::string_view> compiled_isas() {
    std::vector<std::string_view> names;
    for (const kernels::KernelSet* set : kernels::kKernelSets) {
        names.emplace_back(set->name);
    }
    return names;
}

const kernels::KernelSet& kernel_set(std::string_view name) { return kernel_set_for(name, "kernel set"); }

const kernels::KernelSet& active_kernel_set() {
    // A throwing initialiser leaves the variable uninitialised: every later call reports the error again.
    static const kernels::KernelSet& active = [&]() -> const kernels::KernelSet& {
        const char* forced = std::getenv("MIXED_KV_ISA");
        return kernel_set_for(forced != nullptr ? forced : "", "MIXED_KV_ISA");
    }();
    return active;
}

}  // namespace mixed_kv
