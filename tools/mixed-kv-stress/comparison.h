#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

namespace mixed_kv::tools {

// How far the plugin's cache may be from the host's own F16 cache that goes through the same operations.
//
// Exact storage (both formats f16, or a window over the whole context): the stored rows of the first layer
// are equal bit for bit, but for keys that were shifted: now and then a value is rounded to the neighbouring
// binary16, which is held to 2^-22 for each shift. Later layers and logits differ by our attention's float32
// accumulation against the host's F16 one, by up to 1.3e-5 on these models; the host differs from itself as
// much between batch sizes (kExactNmse; a wrong row gives 1e-2 and more). Single rows of later layers differ
// by up to 1.1e-4 where attention's values nearly cancel and are normalised afterwards (kExactRowNmse).
//
// Cold storage of b bits: a code is at most half a step from its value, the step is the range of 64 values
// over 2^b - 1, and the range of 64 values is taken as kRange times their root mean square (4.7 for a normal
// distribution). A row is encoded once when it leaves the window, and once more by a restore that brings it
// in groups other than those it was encoded in; errors of e encodings add up as independent ones do:
//     eps(b, e) = e * kRange^2 / (12 (2^b - 1)^2)
// Rows of the first layer follow from token and position alone, so they are held to 4 eps relative to the
// mean square of their tensor. Logits and later layers also carry what attention made of inexact rows: scores
// with standard deviation sigma turn a relative error eps_k of the keys into sigma^2 eps_k, and each of
// n_layer layers adds its own:
//     bound = 4 n_layer (eps_v + sigma^2 eps_k)
// Both end at kUnrelated: rows or logits that have nothing to do with each other have an NMSE of 2, missing
// ones of 1. Formats whose bound reaches it (q3, q2) are checked for that only. Single logits over keys of 2
// bits, or over rows that were encoded twice, may well be unrelated (1.67 was seen with MLA, where the keys
// are the values, too): kUnrelatedCoarse only keeps them finite and of a sensible size.
//
// What is attended to is therefore held to another oracle as well, whatever the format: the host's own
// attention over our rows as they read (a state of ours in a context of the host). Logits then differ by the
// kernels' rounding alone, kOwnRowsNmse.
struct Tolerance {
    int key_bits = 16, value_bits = 16;  // of cold storage
    bool exact = false;                  // nothing of this cache can be cold
    int n_layer = 1;
    double attention_sigma = 2.0;
    double encodings = 1;  // how often a row may have been encoded
    int shifts = 0;        // how often a key may have been turned by a K-shift

    static constexpr double kExactNmse = 1e-4;
    static constexpr double kExactRowNmse = 5e-4;
    static constexpr double kRange = 8.0;
    static constexpr double kUnrelated = 0.9;
    static constexpr double kUnrelatedCoarse = 4.0;
    static constexpr double kOwnRowsNmse = 1e-4;

    double rows(bool is_key, bool first_layer) const;
    double logits() const;

  private:
    double epsilon(int bits) const;
};

// Sum of squared differences over sum of squares of expected; infinite when a value is not finite.
double nmse(std::span<const float> expected, std::span<const float> actual);

// The rows of a saved state (llama_state_get_data or llama_state_seq_get_data of llama.cpp v0.5.0).
struct StateRows {
    struct Tensor {
        bool is_key;
        int layer;  // counted within its cache
        int cache;  // a model with sliding windows has two
        std::size_t row_bytes;
        std::size_t offset, size;  // of its rows in the state
    };
    std::vector<Tensor> tensors;
    std::vector<std::int32_t> positions;  // of the first stream's cells, in the order of rows
    std::size_t row_size_field = 0;       // offset of the first row size, for tests that damage it
};

// has_values: false for MLA, which stores keys only. Throws std::runtime_error when the state is not laid out
// as expected.
StateRows parse_state(std::span<const std::uint8_t> state, bool whole, bool has_values);

struct RowsError {
    double worst = 0;  // NMSE of a row relative to its tensor's mean square, over its bound
    double nmse = 0;
    std::string where;
};
// The rows of one sequence's state by position, those of its tensors one after the other.
std::map<std::int32_t, std::vector<std::vector<std::uint8_t>>> rows_by_position(
    std::span<const std::uint8_t> state, bool has_values);

// Compares two states that must have the same layout; everything but rows must be equal byte for byte. Throws
// std::runtime_error when it is not.
RowsError compare_states(std::span<const std::uint8_t> expected, std::span<const std::uint8_t> actual,
                         bool whole, bool has_values, const Tolerance& tolerance);

}  // namespace mixed_kv::tools
