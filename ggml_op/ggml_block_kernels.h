#pragma once

#include <ggml.h>

#include <string_view>
#include <vector>

#include "mixed_kv/cold_format.h"

namespace mixed_kv::kernels {
struct KernelSet;
}

// ggml's own block types as cold formats. A page of one KV head is then [64][head_dim] values in rows of ggml
// blocks, 64 * ggml_row_size(type, head_dim) bytes, decoded to float by ggml's to_float and multiplied by the
// set's gemm: never rounded to binary16. Values are rotated as they are decoded, because cold pages are
// summed in the rotated basis.
namespace mixed_kv::ggml_op {

// True for q8_0, q5_0 and q4_0.
bool is_block_type(ggml_type type) noexcept;

// A kernel set that also knows the block types.
struct BlockKernelSet {
    const kernels::KernelSet* set;  // formats: cold_formats(), then the block types
    std::string_view isa;
    int format_index(ggml_type type) const;  // of a block type
};

// isa as for kernel_set(); empty: active_kernel_set(). Throws Error. The set lives as long as the process.
BlockKernelSet block_kernel_set(std::string_view isa);

}  // namespace mixed_kv::ggml_op
