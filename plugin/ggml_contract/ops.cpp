#include "ggml_contract/ops.h"

#include <cstring>

namespace mixed_kv::plugin {

ggml_op Ops::reshape = GGML_OP_RESHAPE;
ggml_op Ops::view = GGML_OP_VIEW;
ggml_op Ops::permute = GGML_OP_PERMUTE;
ggml_op Ops::transpose = GGML_OP_TRANSPOSE;
ggml_op Ops::cont = GGML_OP_CONT;
ggml_op Ops::mul_mat = GGML_OP_MUL_MAT;
ggml_op Ops::set_rows = GGML_OP_SET_ROWS;
ggml_op Ops::flash_attn_ext = GGML_OP_FLASH_ATTN_EXT;
ggml_op Ops::rope = GGML_OP_ROPE;

const char* Ops::learn() {
    // No ggml since 0.9.7 has fewer, and all of these ops are among them; ggml_op_name() does not look where
    // its list ends.
    constexpr int kFewestOps = 96;
    const struct {
        const char* name;
        ggml_op* number;
    } wanted[] = {
        {"RESHAPE", &reshape},   {"VIEW", &view},
        {"PERMUTE", &permute},   {"TRANSPOSE", &transpose},
        {"CONT", &cont},         {"MUL_MAT", &mul_mat},
        {"SET_ROWS", &set_rows}, {"FLASH_ATTN_EXT", &flash_attn_ext},
        {"ROPE", &rope},
    };
    for (const auto& op : wanted) {
        int number = 0;
        while (number < kFewestOps && std::strcmp(ggml_op_name(ggml_op(number)), op.name) != 0) ++number;
        if (number == kFewestOps) return op.name;
        *op.number = ggml_op(number);
    }
    return nullptr;
}

}  // namespace mixed_kv::plugin
