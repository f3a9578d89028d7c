#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <vector>

namespace mixed_kv {

// Storage for the pages of one ggml buffer: fixed-size classes carved from anonymous mappings, 64-byte aligned,
// freed blocks are reused, and their memory goes back to the system in 4 KiB units when a class holds more free
// bytes than it is likely to reuse. Memory is what RSS shows (MADV_NOHUGEPAGE). Not thread-safe.
class PageArena {
  public:
    explicit PageArena(std::size_t limit_bytes = SIZE_MAX);
    ~PageArena();
    PageArena(const PageArena&) = delete;
    PageArena& operator=(const PageArena&) = delete;

    // bytes > 0. Contents are unspecified. Throws Error when the system or the limit refuses.
    std::byte* allocate(std::size_t bytes);
    void release(std::byte* block, std::size_t bytes) noexcept;  // bytes as allocated
    void release_all() noexcept;                                 // every block at once

    std::size_t bytes_in_use() const noexcept { return in_use_; }
    std::size_t bytes_resident() const noexcept { return resident_; }  // in use plus kept for reuse

  private:
    struct SizeClass;
    std::map<std::size_t, SizeClass> classes_;
    std::size_t limit_;
    std::size_t in_use_ = 0;
    std::size_t resident_ = 0;
};

}  // namespace mixed_kv
