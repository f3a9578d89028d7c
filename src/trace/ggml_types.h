#pragma once

#include <array>
#include <cstdint>
#include <string>

// ggml's tensor types as they appear in GGUF files, without any ggml header: the core must build and its
// files must be readable where no ggml is installed.

namespace mixed_kv::trace {

// Numbers as in ggml.h (ggml 0.25.1). Removed types (4, 5, 31-33, 36-38) are unknown here and refused.
enum class GgmlType : int32_t {
    f32 = 0,
    f16 = 1,
    q4_0 = 2,
    q4_1 = 3,
    q5_0 = 6,
    q5_1 = 7,
    q8_0 = 8,
    q8_1 = 9,
    q2_K = 10,
    q3_K = 11,
    q4_K = 12,
    q5_K = 13,
    q6_K = 14,
    q8_K = 15,
    iq2_xxs = 16,
    iq2_xs = 17,
    iq3_xxs = 18,
    iq1_s = 19,
    iq4_nl = 20,
    iq3_s = 21,
    iq2_s = 22,
    iq4_xs = 23,
    i8 = 24,
    i16 = 25,
    i32 = 26,
    i64 = 27,
    f64 = 28,
    iq1_m = 29,
    bf16 = 30,
    tq1_0 = 34,
    tq2_0 = 35,
    mxfp4 = 39,
    nvfp4 = 40,
    q1_0 = 41,
    q2_0 = 42,
};

// ne in ggml's order, fastest first; unused dimensions are 1.
using Shape = std::array<int64_t, 4>;

struct GgmlTypeInfo {
    GgmlType type;
    const char* name;      // as ggml_type_name()
    int64_t block_values;  // values per block along ne[0]
    int64_t block_bytes;   // bytes per block
};

// The type with that number, or nullptr if this library does not know it.
const GgmlTypeInfo* find_ggml_type(int32_t number) noexcept;

// The type with that name ("f16", "q8_0", ...), or nullptr.
const GgmlTypeInfo* find_ggml_type(const std::string& name) noexcept;

// Facts about a known type. Throws Error for a value outside the enumeration.
const GgmlTypeInfo& ggml_type_info(GgmlType type);

// "[64, 8, 33]" with at least one and at most four dimensions: trailing ones are left out.
std::string shape_text(const Shape& ne);

// Bytes of a contiguous tensor. A dimension of 0 makes an empty tensor of 0 bytes. Throws Error, without ever
// wrapping, for a negative dimension, ne[0] not divisible by the block, or more than 2^63-1 elements or
// bytes.
uint64_t tensor_bytes(GgmlType type, const Shape& ne);

// Bytes from one element of dimension i to the next in a contiguous tensor (nb[0]: block bytes), as ggml's
// nb.
Shape contiguous_strides(GgmlType type, const Shape& ne);

}  // namespace mixed_kv::trace
