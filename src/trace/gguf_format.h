#pragma once

#include <concepts>
#include <cstdint>
#include <string>

// What the GGUF reader and writer share: the container's own types and constants.

namespace mixed_kv::trace {

inline constexpr char kGgufMagic[4] = {'G', 'G', 'U', 'F'};
inline constexpr uint32_t kGgufVersion = 3;
inline constexpr uint32_t kGgufDefaultAlignment = 32;
inline constexpr char kGgufAlignmentKey[] = "general.alignment";

// ggml refuses names of 64 bytes and more (GGML_MAX_NAME counts the final NUL).
inline constexpr uint64_t kMaxTensorName = 63;
// The GGUF specification's bound.
inline constexpr uint64_t kMaxKey = 65535;

enum class GgufType : uint32_t {
    u8 = 0,
    i8 = 1,
    u16 = 2,
    i16 = 3,
    u32 = 4,
    i32 = 5,
    f32 = 6,
    boolean = 7,
    string = 8,
    array = 9,
    u64 = 10,
    i64 = 11,
    f64 = 12,
};

// Bytes of one value in the file, 0 for strings, arrays and unknown types.
constexpr uint64_t gguf_value_bytes(GgufType type) noexcept {
    switch (type) {
        case GgufType::u8:
        case GgufType::i8:
        case GgufType::boolean:
            return 1;
        case GgufType::u16:
        case GgufType::i16:
            return 2;
        case GgufType::u32:
        case GgufType::i32:
        case GgufType::f32:
            return 4;
        case GgufType::u64:
        case GgufType::i64:
        case GgufType::f64:
            return 8;
        case GgufType::string:
        case GgufType::array:
            return 0;
    }
    return 0;
}

constexpr const char* gguf_type_name(GgufType type) noexcept {
    constexpr const char* kNames[] = {"u8",   "i8",     "u16",   "i16", "u32", "i32", "f32",
                                      "bool", "string", "array", "u64", "i64", "f64"};
    const auto number = static_cast<uint32_t>(type);
    return number < std::size(kNames) ? kNames[number] : "unknown";
}

// The GGUF type of a C++ value. Only the listed types exist; others do not compile.
template <typename T>
inline constexpr GgufType kGgufTypeOf = T::no_gguf_type_for_this_cpp_type;
template <>
inline constexpr GgufType kGgufTypeOf<uint8_t> = GgufType::u8;
template <>
inline constexpr GgufType kGgufTypeOf<int8_t> = GgufType::i8;
template <>
inline constexpr GgufType kGgufTypeOf<uint16_t> = GgufType::u16;
template <>
inline constexpr GgufType kGgufTypeOf<int16_t> = GgufType::i16;
template <>
inline constexpr GgufType kGgufTypeOf<uint32_t> = GgufType::u32;
template <>
inline constexpr GgufType kGgufTypeOf<int32_t> = GgufType::i32;
template <>
inline constexpr GgufType kGgufTypeOf<float> = GgufType::f32;
template <>
inline constexpr GgufType kGgufTypeOf<bool> = GgufType::boolean;
template <>
inline constexpr GgufType kGgufTypeOf<std::string> = GgufType::string;
template <>
inline constexpr GgufType kGgufTypeOf<uint64_t> = GgufType::u64;
template <>
inline constexpr GgufType kGgufTypeOf<int64_t> = GgufType::i64;
template <>
inline constexpr GgufType kGgufTypeOf<double> = GgufType::f64;

// Numbers only: what an array read or written as raw bytes may hold.
template <typename T>
concept GgufNumber = (std::integral<T> || std::floating_point<T>)&&!std::same_as<T, bool>;

}  // namespace mixed_kv::trace
