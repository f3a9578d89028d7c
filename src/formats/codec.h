#pragma once

#include <cstddef>
#include <cstdint>

#include "formats/block_layout.h"
#include "kernels/contract.h"
#include "mixed_kv/cold_format.h"

// The scalar codecs. They define the bytes of every cold format; vector encoders reproduce them exactly.
// docs/cold-formats.md states the arithmetic in words.
namespace mixed_kv::formats {

// Encode one KV head's page. See kernels::EncodeArgs; false, with the block untouched, when a counted row
// holds a non-finite value, or values whose scale or zero point binary16 cannot hold.
bool encode_key(int code_bits, const kernels::EncodeArgs& args) noexcept;
bool encode_value(int code_bits, const kernels::EncodeArgs& args) noexcept;

// Reads an encoded block value by value: for references, tests and tools, where clarity counts. The rows of a
// value block are in the rotated basis (hadamard_size()).
class BlockReader {
  public:
    BlockReader(int code_bits, KvRole role, int head_dim, const std::byte* block) noexcept;

    int code(int token, int channel) const noexcept;
    // The scale and zero point that govern this value: value = scale * code + zero.
    float scale(int token, int channel) const noexcept;
    float zero(int token, int channel) const noexcept;
    float value(int token, int channel) const noexcept {
        return scale(token, channel) * static_cast<float>(code(token, channel)) + zero(token, channel);
    }

  private:
    float param(std::size_t offset, int index) const noexcept;

    bool is_key_;
    CodePlanes planes_;
    BlockLayout layout_;
    const std::byte* block_;
};

}  // namespace mixed_kv::formats
