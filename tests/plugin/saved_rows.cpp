#include "saved_rows.h"

#include <ggml.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>

namespace mixed_kv::test {

namespace {

// llama.cpp rotates quantized rows by a Hadamard matrix of 64 (for heads of 64), which is its own inverse.
void hadamard64(float* x) {
    for (int step = 1; step < 64; step *= 2) {
        for (int i = 0; i < 64; ++i) {
            if ((i & step) != 0) continue;
            const float a = x[i], b = x[i + step];
            x[i] = a + b;
            x[i + step] = a - b;
        }
    }
    for (int i = 0; i < 64; ++i) x[i] *= 0.125f;
}

struct Saved {
    SavedRows keys, values;
};

// The format of a saved sequence is described at tools/mixed-kv-bench/synthetic_state.cpp.
Saved saved(const Context& context, llama_seq_id sequence) {
    const std::vector<std::uint8_t> state = context.save_sequence(sequence);
    std::size_t at = 0;
    const auto take = [&](auto& value) {
        if (at + sizeof value > state.size()) throw std::runtime_error("the state ends early");
        std::memcpy(&value, state.data() + at, sizeof value);
        at += sizeof value;
    };
    std::uint32_t word = 0, n_cells = 0, is_transposed = 0, n_layers = 0;
    take(word);
    take(word);
    Saved saved;
    for (int cache = 0; at < state.size(); ++cache) {
        take(word);
        take(n_cells);
        std::vector<std::int32_t> positions(n_cells);
        for (std::int32_t& position : positions) {
            take(position);
            at += 8;  // number of sequences, the sequence
        }
        take(is_transposed);
        take(n_layers);
        for (SavedRows* rows : {&saved.keys, &saved.values}) {
            if (rows == &saved.values && (is_transposed != 0 || at == state.size())) break;
            rows->positions.push_back(positions);
            for (std::uint32_t layer = 0; layer < n_layers; ++layer) {
                std::int32_t type = 0;
                std::uint64_t row_bytes = 0;
                take(type);
                take(row_bytes);
                const auto* traits = ggml_get_type_traits(ggml_type(type));
                rows->row_elements =
                    std::size_t(row_bytes) / traits->type_size * std::size_t(traits->blck_size);
                std::vector<float> values(n_cells * rows->row_elements);
                traits->to_float(state.data() + at, values.data(), std::int64_t(values.size()));
                if (type != GGML_TYPE_F16) {
                    for (std::size_t i = 0; i < values.size(); i += 64) hadamard64(values.data() + i);
                }
                at += std::size_t(row_bytes) * n_cells;
                rows->layers.push_back({std::move(values), cache});
            }
        }
        if (is_transposed != 0) break;
    }
    return saved;
}

}  // namespace

SavedRows saved_keys(const Context& context, llama_seq_id sequence) { return saved(context, sequence).keys; }
SavedRows saved_values(const Context& context, llama_seq_id sequence) {
    return saved(context, sequence).values;
}

const float* SavedRows::row(std::size_t layer, std::int32_t position) const {
    const auto& of_cache = positions[std::size_t(layers[layer].cache)];
    const auto found = std::find(of_cache.begin(), of_cache.end(), position);
    if (found == of_cache.end()) return nullptr;
    return layers[layer].values.data() + std::size_t(found - of_cache.begin()) * row_elements;
}

double relative_rms(const SavedRows& rows, const SavedRows& exact, std::size_t first, std::size_t n,
                    std::optional<std::size_t> only_layer) {
    double difference = 0, size = 0;
    for (std::size_t layer = 0; layer < exact.layers.size(); ++layer) {
        if (only_layer && layer != *only_layer) continue;
        for (std::size_t position = first; position < first + n; ++position) {
            const float* actual = rows.row(layer, std::int32_t(position));
            const float* expected = exact.row(layer, std::int32_t(position));
            if (actual == nullptr || expected == nullptr) continue;
            for (std::size_t i = 0; i < exact.row_elements; ++i) {
                difference += std::pow(double(actual[i]) - expected[i], 2);
                size += std::pow(double(expected[i]), 2);
            }
        }
    }
    return std::sqrt(difference / size);
}

}  // namespace mixed_kv::test
