#include "trace/ggml_types.h"

#include <limits>

#include "mixed_kv/error.h"
#include "trace/text.h"

namespace mixed_kv::trace {
namespace {

// Sizes from ggml-common.h of ggml 0.25.1 (the static_asserts below each block struct there).
constexpr GgmlTypeInfo kTypes[] = {
    {GgmlType::f32, "f32", 1, 4},
    {GgmlType::f16, "f16", 1, 2},
    {GgmlType::q4_0, "q4_0", 32, 18},
    {GgmlType::q4_1, "q4_1", 32, 20},
    {GgmlType::q5_0, "q5_0", 32, 22},
    {GgmlType::q5_1, "q5_1", 32, 24},
    {GgmlType::q8_0, "q8_0", 32, 34},
    {GgmlType::q8_1, "q8_1", 32, 36},
    {GgmlType::q2_K, "q2_K", 256, 84},
    {GgmlType::q3_K, "q3_K", 256, 110},
    {GgmlType::q4_K, "q4_K", 256, 144},
    {GgmlType::q5_K, "q5_K", 256, 176},
    {GgmlType::q6_K, "q6_K", 256, 210},
    {GgmlType::q8_K, "q8_K", 256, 292},
    {GgmlType::iq2_xxs, "iq2_xxs", 256, 66},
    {GgmlType::iq2_xs, "iq2_xs", 256, 74},
    {GgmlType::iq3_xxs, "iq3_xxs", 256, 98},
    {GgmlType::iq1_s, "iq1_s", 256, 50},
    {GgmlType::iq4_nl, "iq4_nl", 32, 18},
    {GgmlType::iq3_s, "iq3_s", 256, 110},
    {GgmlType::iq2_s, "iq2_s", 256, 82},
    {GgmlType::iq4_xs, "iq4_xs", 256, 136},
    {GgmlType::i8, "i8", 1, 1},
    {GgmlType::i16, "i16", 1, 2},
    {GgmlType::i32, "i32", 1, 4},
    {GgmlType::i64, "i64", 1, 8},
    {GgmlType::f64, "f64", 1, 8},
    {GgmlType::iq1_m, "iq1_m", 256, 56},
    {GgmlType::bf16, "bf16", 1, 2},
    {GgmlType::tq1_0, "tq1_0", 256, 54},
    {GgmlType::tq2_0, "tq2_0", 256, 66},
    {GgmlType::mxfp4, "mxfp4", 32, 17},
    {GgmlType::nvfp4, "nvfp4", 64, 36},
    {GgmlType::q1_0, "q1_0", 128, 18},
    {GgmlType::q2_0, "q2_0", 64, 18},
};

}  // namespace

const GgmlTypeInfo* find_ggml_type(int32_t number) noexcept {
    for (const GgmlTypeInfo& info : kTypes) {
        if (static_cast<int32_t>(info.type) == number) {
            return &info;
        }
    }
    return nullptr;
}

const GgmlTypeInfo* find_ggml_type(const std::string& name) noexcept {
    for (const GgmlTypeInfo& info : kTypes) {
        if (name == info.name) {
            return &info;
        }
    }
    return nullptr;
}

const GgmlTypeInfo& ggml_type_info(GgmlType type) {
    const GgmlTypeInfo* info = find_ggml_type(static_cast<int32_t>(type));
    if (info == nullptr) {
        throw Error(cat("unknown ggml type ", static_cast<uint32_t>(type)));
    }
    return *info;
}

std::string shape_text(const Shape& ne) {
    int n_dims = 4;
    while (n_dims > 1 && ne[n_dims - 1] == 1) {
        --n_dims;
    }
    std::string text = "[";
    for (int i = 0; i < n_dims; ++i) {
        text += (i > 0 ? ", " : "") + std::to_string(ne[i]);
    }
    return text + "]";
}

uint64_t tensor_bytes(GgmlType type, const Shape& ne) {
    const GgmlTypeInfo& info = ggml_type_info(type);
    bool empty = false;
    for (const int64_t n : ne) {
        if (n < 0) {
            throw Error(cat("negative dimension in shape ", shape_text(ne)));
        }
        empty = empty || n == 0;
    }
    if (ne[0] % info.block_values != 0) {
        throw Error(cat("first dimension of shape ", shape_text(ne), " is no multiple of the block of ",
                        info.block_values, " values of type ", info.name));
    }
    // The product of the non-zero dimensions must fit even in an empty tensor: others multiply before they
    // look.
    int64_t elements = 1;
    for (const int64_t n : ne) {
        if (n > 0 && __builtin_mul_overflow(elements, n, &elements)) {
            throw Error(cat("number of elements of shape ", shape_text(ne), " does not fit in 63 bits"));
        }
    }
    int64_t bytes = 0;
    if (__builtin_mul_overflow(elements / info.block_values, info.block_bytes, &bytes)) {
        throw Error(cat("size in bytes of shape ", shape_text(ne), " does not fit in 63 bits"));
    }
    return empty ? 0 : static_cast<uint64_t>(bytes);
}

Shape contiguous_strides(GgmlType type, const Shape& ne) {
    const GgmlTypeInfo& info = ggml_type_info(type);
    Shape nb{};
    nb[0] = info.block_bytes;
    nb[1] = info.block_bytes * (ne[0] / info.block_values);
    nb[2] = nb[1] * ne[1];
    nb[3] = nb[2] * ne[2];
    return nb;
}

}  // namespace mixed_kv::trace
