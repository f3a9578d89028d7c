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

// In place over groups of `size` along x[n]: the rotation, with the order of operations that defines it.
void rotate(float* x, int n, int size) noexcept;
// The means that a value block's codes are taken about, from the sums of its n_rows counted rows [head_dim],
// which become the means before rounding. False when binary16 cannot hold one.
bool rotated_means(float* sums, int head_dim, int n_rows, std::uint16_t* means) noexcept;
// The offsets stored, which give the decoded rows the means of the originals: rotated_means() before
// rounding, less the mean of what the codes stand for. residuals [head_dim][8]: sums of scale * (code -
// shift) over the tokens t with t % 8 = 0 .. 7.
void value_offsets(const float* rotated, const float* residuals, int head_dim, int n_rows,
                   const std::uint16_t* means, std::uint16_t* offsets) noexcept;

// Reads an encoded block value by value: for tests and tools, where clarity counts. The rows of a value block
// are in the rotated basis (hadamard_size()).
class BlockReader {
  public:
    BlockReader(int code_bits, KvRole role, int head_dim, const std::byte* block) noexcept;

    int code(int token, int channel) const noexcept;
    int width(int channel) const noexcept;  // of its codes, in bits
    // The scale and offset that govern this value: value = scale * (code - shift) + offset. Where a channel
    // has no codes, code and scale are 0.
    float scale(int token, int channel) const noexcept;
    float offset(int token, int channel) const noexcept;
    float shift() const noexcept { return shift_; }
    float value(int token, int channel) const noexcept {
        return scale(token, channel) * (static_cast<float>(code(token, channel)) - shift_) +
               offset(token, channel);
    }

  private:
    // Codes of one width that are laid out together: the whole block, or a tier of it.
    struct Part {
        const std::byte* data;
        int width;
        CodePlanes planes;
        BlockLayout layout;
        int first, end;  // places of channels
    };

    // The stored place of a channel, and the part that holds it.
    int place(int channel) const noexcept;
    const Part& part_of(int place) const noexcept;

    bool is_key_;
    float shift_;
    int n_parts_ = 1;
    Part parts_[kMaxTiers];
    bool ordered_ = false;
    std::uint8_t place_of_quad_[kernels::kMaxHeadDim / 4];
};

}  // namespace mixed_kv::formats
