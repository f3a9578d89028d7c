#pragma once

#include <cstddef>
#include <vector>

#include "kqv-tensor-reader/report.h"

namespace mixed_kv::trace_tools {

// Indexes of the report's records with sources, the most telling first. In turns: one out of tolerance, the
// worst first; one of the others, beginning with the last step, the first, and then steps halfway between
// those that are there already, a step's layers together. A page takes as many details as its size allows, in
// this order.
std::vector<std::size_t> by_interest(const Report& report);

}  // namespace mixed_kv::trace_tools
