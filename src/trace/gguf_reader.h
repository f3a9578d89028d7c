#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "trace/byte_source.h"
#include "trace/ggml_types.h"
#include "trace/gguf_format.h"

namespace mixed_kv::trace {

// Upper bounds on what a file may declare. They exist so that a damaged or hostile file costs neither time
// nor memory; every count is also held against the file's real size.
struct GgufLimits {
    uint64_t max_tensors = 4'000'000;
    uint64_t max_kv = 1'000'000;
    uint64_t max_string_bytes = 64ull << 20;
    uint64_t max_array_values = 16'000'000;
    uint32_t max_alignment = 1u << 20;
};

// One tensor of an open file. `name` points into the reader.
struct GgufTensor {
    std::string_view name;
    GgmlType type = GgmlType::f32;
    uint32_t n_dims = 0;
    Shape ne{1, 1, 1, 1};
    uint64_t offset = 0;  // from the start of the file
    uint64_t bytes = 0;   // without padding
};

// Reads GGUF 2 and 3, little-endian, and trusts nothing in the file: everything is checked when it is opened,
// before memory is allocated for it. Only names, shapes and positions are kept (about 100 bytes a tensor);
// values and tensor data stay in the file until they are asked for.
//
// Every function that can fail throws Error with one line that names the file, the place and the values.
// Nothing here aborts. Reading is const and safe from several threads.
class GgufReader {
  public:
    explicit GgufReader(const std::filesystem::path& path, const GgufLimits& limits = {});
    explicit GgufReader(std::unique_ptr<ByteSource> source, const GgufLimits& limits = {});

    const std::string& file_name() const noexcept { return source_->name(); }
    uint64_t file_bytes() const noexcept { return source_->size(); }
    uint32_t version() const noexcept { return version_; }
    uint32_t alignment() const noexcept { return alignment_; }
    uint64_t data_offset() const noexcept { return data_offset_; }

    // --- key-value pairs, in file order

    size_t n_kv() const noexcept { return kvs_.size(); }
    std::string_view key(size_t index) const { return view(kvs_.at(index).key); }
    GgufType kv_type(size_t index) const { return kvs_.at(index).type; }  // of an array: of its values
    bool kv_is_array(size_t index) const { return kvs_.at(index).is_array; }
    uint64_t kv_count(size_t index) const { return kvs_.at(index).count; }  // 1 if no array
    std::optional<size_t> find_key(std::string_view key) const noexcept;

    // The value of `key`, which must exist and have exactly the GGUF type of T (a number, bool or
    // std::string).
    template <typename T>
    T get(std::string_view key) const {
        const Kv& kv = require_kv(key, kGgufTypeOf<T>, /*is_array=*/false);
        if constexpr (std::same_as<T, std::string>) {
            return read_strings(kv).front();
        } else if constexpr (std::same_as<T, bool>) {
            uint8_t byte = 0;
            source_->read_at(kv.position, std::as_writable_bytes(std::span(&byte, 1)));
            return byte != 0;
        } else {
            T value;
            source_->read_at(kv.position, std::as_writable_bytes(std::span(&value, 1)));
            return value;
        }
    }

    // The array under `key`, which must exist and hold exactly the GGUF type of T (a number or std::string).
    template <typename T>
    std::vector<T> get_array(std::string_view key) const {
        const Kv& kv = require_kv(key, kGgufTypeOf<T>, /*is_array=*/true);
        if constexpr (std::same_as<T, std::string>) {
            return read_strings(kv);
        } else {
            static_assert(GgufNumber<T>);
            std::vector<T> values(kv.count);
            source_->read_at(kv.position, std::as_writable_bytes(std::span(values)));
            return values;
        }
    }

    // --- tensors, in file order

    size_t n_tensors() const noexcept { return tensors_.size(); }
    GgufTensor tensor(size_t index) const;
    std::optional<size_t> find_tensor(std::string_view name) const noexcept;

    // The tensor with that name. Throws Error if there is none.
    GgufTensor require_tensor(std::string_view name) const;

    // Copies bytes [offset, offset + out.size()) of the tensor's data. Throws Error outside the tensor.
    void read_bytes(const GgufTensor& tensor, uint64_t offset, std::span<std::byte> out) const;

    // All bytes of the tensor's data.
    std::vector<std::byte> read_bytes(const GgufTensor& tensor) const;

    // All values of the tensor `name`, which must exist with exactly this type and shape; T must have the
    // type's size.
    template <GgufNumber T>
    std::vector<T> read(std::string_view name, GgmlType type, const Shape& ne) const {
        const GgufTensor found = require_tensor(name, type, ne, sizeof(T));
        std::vector<T> values(found.bytes / sizeof(T));
        read_bytes(found, 0, std::as_writable_bytes(std::span(values)));
        return values;
    }

  private:
    struct Name {
        uint32_t position = 0;  // in names_
        uint32_t length = 0;
    };
    struct Kv {
        Name key;
        GgufType type = GgufType::u8;
        bool is_array = false;
        uint64_t count = 1;
        uint64_t position = 0;  // of the first value in the file
    };
    struct Tensor {
        Name name;
        GgmlType type = GgmlType::f32;
        uint32_t n_dims = 0;
        Shape ne{1, 1, 1, 1};
        uint64_t offset = 0;  // from the start of the data section
        uint64_t bytes = 0;
    };
    struct Hashed {
        uint64_t hash = 0;
        uint32_t index = 0;
    };

    std::string_view view(Name name) const {
        return std::string_view(names_).substr(name.position, name.length);
    }
    [[noreturn]] void fail(const std::string& what) const;
    uint64_t read_count(ByteCursor& cursor, const char* what, uint64_t limit, uint64_t bytes_each) const;
    Name read_name(ByteCursor& cursor, const char* what, uint64_t max_length);
    void read_header(ByteCursor& cursor);
    void read_kv(ByteCursor& cursor);
    void read_values(ByteCursor& cursor, const Kv& kv) const;
    void read_alignment();
    void read_tensor_info(ByteCursor& cursor);
    void check_data_layout(const ByteCursor& cursor);
    template <typename Entries>
    std::vector<Hashed> index_names(const Entries& entries, Name Entries::value_type::*name,
                                    const char* what);
    const Kv& require_kv(std::string_view key, GgufType type, bool is_array) const;
    std::vector<std::string> read_strings(const Kv& kv) const;
    GgufTensor require_tensor(std::string_view name, GgmlType type, const Shape& ne,
                              size_t value_bytes) const;

    std::unique_ptr<ByteSource> source_;
    GgufLimits limits_;
    uint32_t version_ = 0;
    uint32_t alignment_ = kGgufDefaultAlignment;
    uint64_t n_tensors_declared_ = 0;
    uint64_t n_kv_declared_ = 0;
    uint64_t data_offset_ = 0;
    std::string names_;  // all keys and tensor names, one after the other
    std::vector<Kv> kvs_;
    std::vector<Tensor> tensors_;
    std::vector<Hashed> kv_index_;      // sorted by hash, then name
    std::vector<Hashed> tensor_index_;  // sorted by hash, then name
};

}  // namespace mixed_kv::trace
