#include "mixed_kv/page_arena.h"

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <new>
#include <string>
#include <vector>

#include "mixed_kv/error.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(address, size) (static_cast<void>(address), static_cast<void>(size))
#define ASAN_UNPOISON_MEMORY_REGION(address, size) (static_cast<void>(address), static_cast<void>(size))
#endif

namespace mixed_kv {

namespace {

constexpr std::size_t kAlign = 64;
constexpr std::size_t kUnit = 4096;             // granularity at which the system takes memory back
constexpr std::size_t kFirstChunk = 64 * 1024;  // untouched parts of a chunk cost address space only
constexpr std::size_t kLargestChunk = 8 << 20;
// Free memory kept for reuse: enough that steady generation never calls the system, little beside the cache.
constexpr std::size_t kKeepAtLeast = 64 * 1024;
constexpr std::size_t kKeepAtMost = 1 << 20;
constexpr std::size_t kKeepFraction = 128;

constexpr std::size_t kHuge = 2 << 20;
constexpr std::size_t kHugeUnits = kHuge / kUnit;
#if !defined(MADV_COLLAPSE)
#define MADV_COLLAPSE 25  // Linux 6.1
#endif

std::size_t round_up(std::size_t value, std::size_t multiple) noexcept {
    return (value + multiple - 1) / multiple * multiple;
}

// MADV_COLLAPSE works whatever the system's switch says; who has switched huge pages off means it.
bool huge_pages_allowed() noexcept {
    static const bool allowed = [] {
        std::ifstream file("/sys/kernel/mm/transparent_hugepage/enabled");
        std::string state;
        return std::getline(file, state) && state.find("[never]") == std::string::npos;
    }();
    return allowed;
}

// Address space of `bytes` bytes at a multiple of `align`, or null.
std::byte* reserve(std::size_t bytes, std::size_t align) noexcept {
    const std::size_t slack = align > kUnit ? align : 0;
    void* p = mmap(nullptr, bytes + slack, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) return nullptr;
    auto* base = static_cast<std::byte*>(p);
    if (slack == 0) return base;
    const std::size_t before =
        round_up(reinterpret_cast<std::uintptr_t>(p), align) - reinterpret_cast<std::uintptr_t>(p);
    if (before != 0) munmap(base, before);
    if (before != slack) munmap(base + before + bytes, slack - before);
    return base + before;
}

}  // namespace

// One mapping, divided into equal blocks.
struct PageArena::Chunk {
    std::byte* base = nullptr;
    std::size_t bytes = 0;
    std::size_t block_bytes = 0;
    std::uint32_t capacity = 0;
    std::uint32_t fresh = 0;  // blocks from this index on were never handed out
    std::uint32_t live = 0;
    std::vector<std::uint32_t> freed;   // reserved in full, so that release() cannot fail
    std::vector<std::uint16_t> users;   // per unit: live blocks that overlap it
    std::vector<std::uint8_t> touched;  // per unit: may be resident
    // Per whole 2 MiB, in classes of lasting blocks only: units that a live block overlaps; one huge page.
    std::vector<std::uint16_t> used_units;
    std::vector<std::uint8_t> huge;

    bool has_space() const noexcept { return live < capacity; }
    std::size_t first_unit(std::uint32_t block) const noexcept { return block * block_bytes / kUnit; }
    std::size_t last_unit(std::uint32_t block) const noexcept {
        return (block * block_bytes + block_bytes - 1) / kUnit;
    }
};

struct PageArena::SizeClass {
    std::size_t block_bytes = 0;
    std::size_t mapped = 0;
    std::vector<std::unique_ptr<Chunk>> chunks;  // by address
    std::size_t hint = 0;                        // no chunk before this one has space
    bool lasting = false;
};

PageArena::PageArena(std::size_t limit_bytes) : limit_(limit_bytes) {}

PageArena::~PageArena() { release_all(); }

std::vector<std::pair<const std::byte*, const std::byte*>> PageArena::mappings() const {
    std::vector<std::pair<const std::byte*, const std::byte*>> result;
    for (const auto& [block_bytes, size_class] : classes_) {
        for (const auto& chunk : size_class->chunks)
            result.emplace_back(chunk->base, chunk->base + chunk->bytes);
    }
    return result;
}

std::size_t PageArena::keep_bytes() const noexcept {
    return std::clamp(in_use_ / kKeepFraction, kKeepAtLeast, kKeepAtMost);
}

PageArena::Chunk& PageArena::chunk_with_space(SizeClass& size_class) {
    auto& chunks = size_class.chunks;
    while (size_class.hint < chunks.size() && !chunks[size_class.hint]->has_space()) ++size_class.hint;
    if (size_class.hint < chunks.size()) return *chunks[size_class.hint];

    const std::size_t block = size_class.block_bytes;
    std::size_t wanted = std::clamp(size_class.mapped / 2, kFirstChunk, kLargestChunk);
    const bool may_be_huge = size_class.lasting && wanted >= kHuge && huge_pages_allowed();
    // Whole 2 MiB, and the block that crosses the last one's end: each can be used in full.
    if (may_be_huge) wanted = wanted / kHuge * kHuge + block - 1;
    auto chunk = std::make_unique<Chunk>();
    chunk->block_bytes = block;
    chunk->capacity = static_cast<std::uint32_t>(std::max<std::size_t>(1, wanted / block));
    chunk->bytes = round_up(chunk->capacity * block, kUnit);
    if (may_be_huge) {
        chunk->used_units.resize(chunk->bytes / kHuge);
        chunk->huge.resize(chunk->bytes / kHuge);
    }
    chunk->freed.reserve(chunk->capacity);
    chunk->users.resize(chunk->bytes / kUnit);
    chunk->touched.resize(chunk->bytes / kUnit);
    chunks.reserve(chunks.size() + 1);
    std::byte* base = reserve(chunk->bytes, may_be_huge ? kHuge : kUnit);
    if (base == nullptr) {
        throw Error("KV pages: the system refused a mapping of " + std::to_string(chunk->bytes) +
                    " bytes: " + std::strerror(errno) + " (" + std::to_string(in_use_) + " bytes in use)");
    }
    // Fails on kernels without huge pages, where it is not needed.
    madvise(base, chunk->bytes, MADV_NOHUGEPAGE);
    ASAN_POISON_MEMORY_REGION(base, chunk->bytes);
    chunk->base = base;
    size_class.mapped += chunk->bytes;
    const auto place = std::upper_bound(chunks.begin(), chunks.end(), chunk->base,
                                        [](const std::byte* at, const auto& c) { return at < c->base; });
    const auto added = chunks.insert(place, std::move(chunk));
    size_class.hint = static_cast<std::size_t>(added - chunks.begin());
    return **added;
}

std::byte* PageArena::allocate(std::size_t bytes) {
    const std::size_t block_bytes = round_up(std::max<std::size_t>(bytes, 1), kAlign);
    try {
        auto slot = classes_.find(block_bytes);
        if (slot == classes_.end()) {
            slot = classes_.emplace(block_bytes, std::make_unique<SizeClass>()).first;
            slot->second->block_bytes = block_bytes;
        }
        Chunk& chunk = chunk_with_space(*slot->second);
        const std::uint32_t block = chunk.freed.empty() ? chunk.fresh : chunk.freed.back();
        const std::size_t first = chunk.first_unit(block), last = chunk.last_unit(block);
        const auto added = [&] {
            const std::uint8_t* touched = chunk.touched.data();
            return kUnit * static_cast<std::size_t>(std::count(touched + first, touched + last + 1, 0));
        };
        const auto refused = [&] { return added() > limit_ || resident_ > limit_ - added(); };
        if (refused()) {
            trim();  // what is kept elsewhere counts against the limit
            if (refused()) {
                throw Error("KV pages: " + std::to_string(bytes) + " more bytes exceed the limit of " +
                            std::to_string(limit_) + " bytes (" + std::to_string(resident_) + " resident)");
            }
        }
        resident_ += added();
        for (std::size_t unit = first; unit <= last; ++unit) {
            if (chunk.touched[unit] != 0 && chunk.users[unit] == 0) kept_ -= kUnit;
            chunk.touched[unit] = 1;
            if (chunk.users[unit]++ == 0) use_unit(chunk, unit);
        }
        if (chunk.freed.empty()) {
            ++chunk.fresh;
        } else {
            chunk.freed.pop_back();
        }
        ++chunk.live;
        ++blocks_;
        in_use_ += block_bytes;
        std::byte* data = chunk.base + block * block_bytes;
        ASAN_UNPOISON_MEMORY_REGION(data, block_bytes);
        return data;
    } catch (const std::bad_alloc&) {
        throw Error("KV pages: out of memory for the records of a " + std::to_string(bytes) + "-byte block");
    }
}

void PageArena::expect_lasting(std::size_t bytes) {
    const std::size_t block_bytes = round_up(std::max<std::size_t>(bytes, 1), kAlign);
    auto& slot = classes_[block_bytes];
    if (slot == nullptr) {
        slot = std::make_unique<SizeClass>();
        slot->block_bytes = block_bytes;
    }
    slot->lasting = true;
}

// A unit gets its first user. When all 512 of 2 MiB have one they become one huge page: nothing becomes
// resident that was not to be, at the price of copying what is already written.
void PageArena::use_unit(Chunk& chunk, std::size_t unit) noexcept {
    const std::size_t range = unit / kHugeUnits;
    if (range >= chunk.used_units.size() || ++chunk.used_units[range] < kHugeUnits || chunk.huge[range] != 0)
        return;
    std::byte* at = chunk.base + range * kHuge;
    // Where the system knows no such call, or has no free 2 MiB, it may still join the pages later by itself.
    madvise(at, kHuge, MADV_HUGEPAGE);
    madvise(at, kHuge, MADV_COLLAPSE);
    chunk.huge[range] = 1;
}

void PageArena::release(std::byte* data, std::size_t bytes) noexcept {
    if (data == nullptr) return;
    const std::size_t block_bytes = round_up(std::max<std::size_t>(bytes, 1), kAlign);
    SizeClass& size_class = *classes_.find(block_bytes)->second;
    auto& chunks = size_class.chunks;
    const auto found = std::upper_bound(chunks.begin(), chunks.end(), data,
                                        [](const std::byte* at, const auto& c) { return at < c->base; }) -
                       1;
    Chunk& chunk = **found;
    const auto block = static_cast<std::uint32_t>(static_cast<std::size_t>(data - chunk.base) / block_bytes);
    ASAN_POISON_MEMORY_REGION(data, block_bytes);
    chunk.freed.push_back(block);
    --chunk.live;
    --blocks_;
    in_use_ -= block_bytes;
    const std::size_t first = chunk.first_unit(block), last = chunk.last_unit(block);
    for (std::size_t unit = first; unit <= last; ++unit) {
        if (--chunk.users[unit] != 0) continue;
        kept_ += kUnit;
        if (unit / kHugeUnits < chunk.used_units.size()) --chunk.used_units[unit / kHugeUnits];
    }
    const auto index = static_cast<std::size_t>(found - chunks.begin());
    const auto others_have_space = [&] {
        for (std::size_t i = size_class.hint; i < chunks.size(); ++i) {
            if (i != index && chunks[i]->has_space()) return true;
        }
        return false;
    };
    if (chunk.live == 0 && others_have_space()) {  // an empty chunk stays only as the class's last reserve
        size_class.mapped -= chunk.bytes;
        unmap(chunk);
        chunks.erase(found);
        size_class.hint = 0;
        return;
    }
    size_class.hint = std::min(size_class.hint, index);
    if (kept_ > keep_bytes()) trim_units(chunk, first, last);
}

void PageArena::trim_units(Chunk& chunk, std::size_t first, std::size_t last) noexcept {
    for (std::size_t unit = first; unit <= last; ++unit) {
        std::size_t end = unit;
        while (end <= last && chunk.users[end] == 0 && chunk.touched[end] != 0) ++end;
        if (end == unit) continue;
        const std::size_t bytes = (end - unit) * kUnit;
        // Locked memory refuses; it then stays resident and stays counted.
        if (madvise(chunk.base + unit * kUnit, bytes, MADV_DONTNEED) == 0) {
            std::memset(chunk.touched.data() + unit, 0, end - unit);
            for (std::size_t i = unit / kHugeUnits; i <= (end - 1) / kHugeUnits && i < chunk.huge.size();
                 ++i) {
                if (chunk.huge[i] == 0) continue;
                chunk.huge[i] =
                    0;  // the system has split it, and must not fill it up again in the background
                madvise(chunk.base + i * kHuge, kHuge, MADV_NOHUGEPAGE);
            }
            kept_ -= bytes;
            resident_ -= bytes;
        }
        unit = end;
    }
}

void PageArena::trim() noexcept {
    if (kept_ == 0) return;
    for (auto& [bytes, size_class] : classes_) {
        for (auto& chunk : size_class->chunks) trim_units(*chunk, 0, chunk->users.size() - 1);
    }
}

void PageArena::unmap(Chunk& chunk) noexcept {
    for (std::size_t unit = 0; unit < chunk.users.size(); ++unit) {
        if (chunk.touched[unit] == 0) continue;
        resident_ -= kUnit;
        if (chunk.users[unit] == 0) kept_ -= kUnit;
    }
    ASAN_UNPOISON_MEMORY_REGION(chunk.base, chunk.bytes);
    munmap(chunk.base, chunk.bytes);
}

void PageArena::release_all() noexcept {
    for (auto& [bytes, size_class] : classes_) {
        for (auto& chunk : size_class->chunks) unmap(*chunk);
        size_class->chunks.clear();
        size_class->mapped = 0;
        size_class->hint = 0;
    }
    in_use_ = 0;
    blocks_ = 0;
}

}  // namespace mixed_kv
