#pragma once

#include "ggml.h"

namespace mixed_kv::plugin {

// The host's numbers of the ops that this plugin tells apart. ggml inserts new ops in the middle of its list,
// so the numbers of the headers hold for some releases only; the names have stayed.
struct Ops {
    // Looks them up. Returns the name of the first that the host lacks; null when it has all.
    static const char* learn();

    // To be compared with ggml_tensor::op. NONE is 0 in every ggml.
    static ggml_op reshape, view, permute, transpose, cont, mul_mat, set_rows, flash_attn_ext, rope;
};

}  // namespace mixed_kv::plugin
