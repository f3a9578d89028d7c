// Collects metadata and random tensors of a model and streams them into a GGUF file.
#pragma once

#include "random_model.h"

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

struct gguf_context;
struct ggml_context;

namespace mixed_kv::test {

/// Value of element `index` given a uniform random number in [0, 1).
using ElementFunction = std::function<float(std::int64_t index, float uniform)>;

/// Noise around `center` with standard deviation `sigma` (uniform distribution).
ElementFunction around(float center, float sigma);

/// `magnitude` (plus or minus a tenth) with a random sign.
ElementFunction random_sign(float magnitude);

class GgufModelWriter {
  public:
    /// Keys given to set() are prefixed with `architecture` and a dot unless they contain "general." or
    /// "tokenizer.".
    GgufModelWriter(std::string architecture, std::uint64_t seed, WeightType weight_type);
    ~GgufModelWriter();
    GgufModelWriter(const GgufModelWriter&) = delete;
    GgufModelWriter& operator=(const GgufModelWriter&) = delete;

    void set(const std::string& key, std::uint32_t value);
    void set(const std::string& key, float value);
    void set(const std::string& key, bool value);
    void set(const std::string& key, const std::string& value);
    void set(const std::string& key, const std::vector<std::int32_t>& values);
    void set(const std::string& key, const std::vector<bool>& values);
    void set(const std::string& key, const std::vector<float>& values);
    void set(const std::string& key, const std::vector<std::string>& values);

    /// A weight matrix of the model's weight type, zero mean, standard deviation `sigma`. `ne` as in ggml,
    /// fastest dimension first. Quantized types fall back to F16 where a row is no whole number of blocks.
    void add_matrix(const std::string& name, const std::vector<std::int64_t>& ne, float sigma);

    /// The same with a type of its own.
    void add_matrix(const std::string& name, const std::vector<std::int64_t>& ne, float sigma,
                    WeightType type);

    /// An F32 tensor filled by `values`.
    void add_f32(const std::string& name, const std::vector<std::int64_t>& ne, ElementFunction values);

    /// Writes everything, returns the size of the file.
    std::uint64_t write(const std::string& path) const;

  private:
    struct Tensor;

    std::string full_key(const std::string& key) const;
    Tensor& add(const std::string& name, const std::vector<std::int64_t>& ne, WeightType type);

    std::string architecture_;
    std::uint64_t seed_;
    WeightType weight_type_;
    gguf_context* gguf_;
    ggml_context* shapes_;  // tensor descriptions without data
    std::vector<Tensor> tensors_;
};

}  // namespace mixed_kv::test
