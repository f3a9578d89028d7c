#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace mixed_kv::trace {

// Random access to immutable bytes of known size: a file or memory.
class ByteSource {
  public:
    virtual ~ByteSource() = default;

    virtual uint64_t size() const noexcept = 0;

    // What it is, for messages: a path or a given name.
    virtual const std::string& name() const noexcept = 0;

    // Fills `out` from `offset`. Throws Error if the range is not wholly inside or reading fails.
    virtual void read_at(uint64_t offset, std::span<std::byte> out) const = 0;
};

// Opens a regular file. It is read with pread, never mapped: a file that shrinks while mapped would kill the
// process with SIGBUS, here it is an Error. Throws Error if it cannot be opened or is no regular file.
std::unique_ptr<ByteSource> open_file_source(const std::filesystem::path& path);

// Bytes that the caller keeps alive.
std::unique_ptr<ByteSource> memory_source(std::span<const std::byte> bytes, std::string name);

// Reads forward through a source with a small buffer. Every reading function throws Error naming `what`, the
// offset and the sizes if the source ends before.
class ByteCursor {
  public:
    explicit ByteCursor(const ByteSource& source) : source_(source) {}

    uint64_t position() const noexcept { return position_; }
    uint64_t remaining() const noexcept { return source_.size() - position_; }

    void read(std::span<std::byte> out, const char* what);
    void skip(uint64_t n, const char* what);

    template <typename T>
    T read(const char* what) {
        T value;
        read(std::as_writable_bytes(std::span(&value, 1)), what);
        return value;
    }

  private:
    void require(uint64_t n, const char* what) const;

    const ByteSource& source_;
    uint64_t position_ = 0;
    uint64_t buffer_start_ = 0;  // offset of buffer_[0] in the source
    std::vector<std::byte> buffer_;
};

}  // namespace mixed_kv::trace
