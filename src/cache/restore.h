#pragma once

#include <cstdint>
#include <vector>

#include "mixed_kv/kv_tensor.h"

namespace mixed_kv {

// Rows that a host writes one after the other into one stream, between two graphs: a sequence that a state
// brings back. They are encoded by 64 in the order in which they come, so that the same sequence is encoded
// in the same groups wherever it is put.
struct KvTensor::Restore {
    std::int64_t n_rows = 0;           // so far
    std::int64_t group_first = 0;      // cell of the first row of the group that is being filled
    bool is_contiguous = true;         // its rows so far are at cells that follow each other
    std::vector<std::int64_t> groups;  // first cells of full groups that are stored, not encoded
};

}  // namespace mixed_kv
