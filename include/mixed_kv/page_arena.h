#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <utility>
#include <vector>

namespace mixed_kv {

// Storage for the pages of one ggml buffer: fixed-size classes carved from anonymous mappings, 64-byte
// aligned. Freed blocks are reused; memory beyond a small reserve goes back to the system in 4 KiB units.
// Mappings grow geometrically from 64 KiB per class. Huge pages take only the place of 2 MiB that are in use
// to the last unit, so that memory is what RSS shows. Not thread-safe. Must outlive every tensor that
// allocates from it.
class PageArena {
  public:
    explicit PageArena(std::size_t limit_bytes = SIZE_MAX);
    ~PageArena();
    PageArena(const PageArena&) = delete;
    PageArena& operator=(const PageArena&) = delete;

    // Blocks of this size are kept long and read often: from now on they may get huge pages.
    void expect_lasting(std::size_t bytes);
    // What a block takes.
    static constexpr std::size_t block_bytes(std::size_t bytes) noexcept { return (bytes + 63) / 64 * 64; }
    // bytes > 0. Contents are unspecified. Throws Error when the system or the limit refuses.
    std::byte* allocate(std::size_t bytes);
    void release(std::byte* block, std::size_t bytes) noexcept;  // bytes as allocated; null does nothing
    void release_all() noexcept;                                 // every block at once
    void trim() noexcept;                                        // gives back what is kept for reuse

    std::size_t bytes_in_use() const noexcept { return in_use_; }      // sum of live blocks, rounded up to 64
    std::size_t bytes_resident() const noexcept { return resident_; }  // 4 KiB units in use or kept for reuse
    std::size_t blocks_in_use() const noexcept { return blocks_; }
    // Every mapping as [begin, end), for measuring what is resident.
    std::vector<std::pair<const std::byte*, const std::byte*>> mappings() const;
    // The limit bounds bytes_resident(). Lowering it below the present use only refuses further blocks.
    void set_limit(std::size_t limit_bytes) noexcept { limit_ = limit_bytes; }

  private:
    struct Chunk;
    struct SizeClass;
    Chunk& chunk_with_space(SizeClass& size_class);
    std::size_t keep_bytes() const noexcept;
    void trim_units(Chunk& chunk, std::size_t first, std::size_t last) noexcept;
    void use_unit(Chunk& chunk, std::size_t unit) noexcept;
    void unmap(Chunk& chunk) noexcept;

    std::map<std::size_t, std::unique_ptr<SizeClass>> classes_;  // by block size
    std::size_t limit_;
    std::size_t in_use_ = 0;
    std::size_t resident_ = 0;
    std::size_t kept_ = 0;  // of resident_: units that hold no live block
    std::size_t blocks_ = 0;
};

}  // namespace mixed_kv
