#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "trace/gguf_reader.h"

namespace mixed_kv::test {

// A trace in memory, whose bytes may be changed and whose checksums computed anew, as docs/trace-format.md
// defines them and from nothing else.
class ResealedTrace {
  public:
    struct Tensor {
        std::string name, kind;
        int32_t layer = 0, step = 0;
        trace::GgmlType type;
        trace::Shape ne;
        size_t offset = 0, bytes = 0;  // in the file
    };

    explicit ResealedTrace(std::vector<std::byte> bytes);

    const std::vector<Tensor>& tensors() const { return tensors_; }
    const Tensor* find(const std::string& kind, int32_t layer, int32_t step) const;
    std::vector<std::byte>& bytes() { return bytes_; }
    size_t n_tensor_bytes() const;

    // Computes every checksum of every record anew.
    void reseal();

  private:
    template <typename T>
    std::vector<T> values(const Tensor* tensor) const;
    void put(const Tensor* tensor, const std::vector<int64_t>& numbers);
    void reseal_record(int32_t layer, int32_t step);
    int64_t written_sum(int64_t what, const std::string& kind, int32_t layer, int32_t step) const;
    int64_t reseal_part(char side, int32_t layer, int32_t step, int64_t n_kv);

    struct Versions {
        std::vector<int64_t> since, sums;  // by id
    };
    std::vector<std::byte> bytes_;
    std::vector<Tensor> tensors_;
    std::map<std::string, size_t> by_name_;
    std::map<std::string, Versions> versions_;  // compact form, by kind and layer, while resealing
};

}  // namespace mixed_kv::test
