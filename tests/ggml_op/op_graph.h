#pragma once

#include <ggml-backend.h>
#include <ggml.h>

#include <array>
#include <cstddef>
#include <span>
#include <vector>

#include "ggml_op/flash_decode_op.h"

namespace mixed_kv::test {

// A graph of the op on ggml's CPU backend, which is loaded at run time.
class OpGraph {
  public:
    OpGraph();
    ~OpGraph();
    OpGraph(const OpGraph&) = delete;
    OpGraph& operator=(const OpGraph&) = delete;

    // An input with its contents, copied. ne: up to three dimensions, ggml's order. Empty inputs are null.
    ggml_tensor* add(ggml_type type, std::array<std::int64_t, 3> ne, const void* data, std::size_t bytes);
    // The same, stored with dimensions 1 and 2 exchanged: data is [ne1][ne2][ne0], seen as [ne0, ne1, ne2].
    ggml_tensor* add_permuted(ggml_type type, std::array<std::int64_t, 3> ne, const void* data,
                              std::size_t bytes);

    // Builds the op over inputs made by add(), computes the graph `times` times and returns the last result,
    // [n_q][n_head][head_dim_v]. Throws Error, also when the results of the computations differ.
    std::vector<float> compute(const ggml_op::FlashDecodeInputs& inputs,
                               const ggml_op::FlashDecodeParams& params, int n_threads, int times = 1);

  private:
    struct Upload {
        ggml_tensor* tensor;
        const void* data;
        std::size_t bytes;
    };
    ggml_context* ctx_ = nullptr;
    ggml_backend_buffer_t buffer_ = nullptr;
    std::vector<Upload> uploads_;
};

}  // namespace mixed_kv::test
