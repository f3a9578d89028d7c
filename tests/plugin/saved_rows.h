#pragma once

#include <cstddef>
#include <vector>

#include "llama_driver.h"

namespace mixed_kv::test {

// The K or V rows of one sequence as a saved state has them: [layer][row][row_elements], rows in the order of
// cells, as floats in the model's basis.
struct SavedRows {
    std::size_t n_cells = 0, row_elements = 0;
    std::vector<std::vector<float>> layers;
};

SavedRows saved_keys(const Context& context, llama_seq_id sequence = 0);
// Of a cache with flash attention, which does not transpose V.
SavedRows saved_values(const Context& context, llama_seq_id sequence = 0);

// Relative RMS of rows first .. first + n - 1 against others, over all layers.
double relative_rms(const SavedRows& rows, const SavedRows& exact, std::size_t first, std::size_t n);

}  // namespace mixed_kv::test
