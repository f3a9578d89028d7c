#pragma once

#include <cstddef>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

namespace mixed_kv::tools {

// A piece of a page's data: one JSON object, and arrays of numbers by name for what would be long in JSON.
// The page's scripts read it with Bundle in page/data.js.
class Bundle {
  public:
    nlohmann::ordered_json json = nlohmann::ordered_json::object();

    // values: in C order of `shape`, slowest index first.
    template <typename T>
    void add(const std::string& name, std::span<const T> values, const std::vector<int64_t>& shape) {
        static_assert(std::is_same_v<T, uint8_t> || std::is_same_v<T, int8_t> || std::is_same_v<T, float>);
        const char* type = std::is_same_v<T, uint8_t> ? "u8" : std::is_same_v<T, int8_t> ? "i8" : "f32";
        add(name, type, std::as_bytes(values), shape);
    }
    template <typename T>
    void add(const std::string& name, const std::vector<T>& values, const std::vector<int64_t>& shape) {
        add(name, std::span<const T>(values), shape);
    }

    // Bytes: length of the JSON text as u32, the text, the arrays; lengths and arrays little-endian.
    // Text that is no UTF-8 is replaced.
    std::vector<std::byte> bytes() const;

  private:
    void add(const std::string& name, const char* type, std::span<const std::byte> bytes,
             const std::vector<int64_t>& shape);

    nlohmann::ordered_json arrays_ = nlohmann::ordered_json::object();
    std::vector<std::byte> data_;
};

}  // namespace mixed_kv::tools
