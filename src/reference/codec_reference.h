#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "mixed_kv/cold_format.h"
#include "mixed_kv/page.h"

// Stored rows as double, decoded by code of its own: it shares no layout arithmetic with the kernels and
// codecs that it checks. docs/cold-formats.md describes what it reads.
namespace mixed_kv::reference {

// One KV head's cold block as rows [64][head_dim] of the model's own basis (values are rotated back). Throws
// Error if a key block's list of widths by channel is not one; no other bytes can be wrong.
std::vector<double> decode_block(int code_bits, KvRole role, int head_dim, const std::byte* block);

// The same without rotating values back.
std::vector<double> decode_block_as_stored(int code_bits, KvRole role, int head_dim, const std::byte* block);

// Bytes of such a block, from the description.
std::size_t block_bytes(int code_bits, KvRole role, int head_dim);

// Normalised Walsh-Hadamard transform in place over n / size consecutive groups of x: entry (i, j) of the
// matrix is (-1)^popcount(i & j) / sqrt(size). Its own inverse.
void hadamard(double* x, int n, int size);

// Rows of cells 0 .. n_cells - 1 of one head of a stream, [n_cells][head_dim]: fp16 pages as they are, cold
// pages decoded with their overlay rows in place, cells without storage as 0.
std::vector<double> read_head(const PageTable& table, int head, std::int64_t n_cells);

}  // namespace mixed_kv::reference
