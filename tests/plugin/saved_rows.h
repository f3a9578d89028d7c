#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "llama_driver.h"

namespace mixed_kv::test {

// The K or V rows of one sequence as a saved state has them: [layer][row][row_elements], rows in the order of
// cells, as floats in the model's basis.
struct SavedRows {
    struct Layer {
        std::vector<float> values;
        int cache =
            0;  // a model with sliding windows has two: the second one's states lack what no token sees
    };
    std::size_t row_elements = 0;
    std::vector<Layer> layers;
    std::vector<std::vector<std::int32_t>> positions;  // [cache][row]

    // The row at a position, or null where the state has none.
    const float* row(std::size_t layer, std::int32_t position) const;
};

SavedRows saved_keys(const Context& context, llama_seq_id sequence = 0);
// Of a cache with flash attention, which does not transpose V. Without layers for MLA, which stores keys
// only.
SavedRows saved_values(const Context& context, llama_seq_id sequence = 0);

// Relative RMS of the rows at positions first .. first + n - 1 against others, over all layers or those of
// one.
double relative_rms(const SavedRows& rows, const SavedRows& exact, std::size_t first, std::size_t n,
                    std::optional<std::size_t> only_layer = {});

}  // namespace mixed_kv::test
