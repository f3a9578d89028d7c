#pragma once

#include "kernels/contract.h"

// Tiered key blocks (narrow keys whose head_dim is a multiple of 16; docs/data-layout.md) for every
// instruction set: a tier is a uniform block with scales of a byte, so each set's own kernels of that width
// take the tiers one after the other. Compiled for the baseline; files of any instruction set may include
// this header.
namespace mixed_kv::kernels {

// The kernels of a set for one tier: keys.data is the tier, keys.head_dim its channels, a multiple of 16.
struct TierQk {
    void (*width2)(const QkArgs& args) noexcept;
    void (*width3)(const QkArgs& args) noexcept;
    void (*width4)(const QkArgs& args) noexcept;
    void (*width6)(const QkArgs& args) noexcept;
    void (*fp16_to_fp32)(const std::uint16_t* in, float* out, std::ptrdiff_t n) noexcept;
};

// KernelSet's qk over a tiered block. The scratch holds permuted_bytes() and, behind them, what the set's
// kernels need for keys.head_dim channels.
void qk_tiered(const QkArgs& args, const TierQk& set) noexcept;
std::size_t permuted_bytes(int head_dim, int n_rows) noexcept;  // a multiple of 64

// Decode a tier, page.data and page.head_dim as above, to where its channels belong: args.out is that of the
// whole head, and the four channels at place g go to those from 4 * order[g] on.
struct TierDecode {
    void (*width2)(const DecodeArgs& args, const std::uint8_t* order) noexcept;
    void (*width3)(const DecodeArgs& args, const std::uint8_t* order) noexcept;
    void (*width4)(const DecodeArgs& args, const std::uint8_t* order) noexcept;
    void (*width6)(const DecodeArgs& args, const std::uint8_t* order) noexcept;
    void (*fp16_to_fp32)(const std::uint16_t* in, float* out, std::ptrdiff_t n) noexcept;
};

// KernelSet's decode_key over a tiered block.
void decode_key_tiered(const DecodeArgs& args, const TierDecode& set) noexcept;

}  // namespace mixed_kv::kernels
