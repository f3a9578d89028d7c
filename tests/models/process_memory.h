// Resident memory of this process, as the kernel counts it.
#pragma once

#include <cstddef>

namespace mixed_kv::test {

/// VmRSS in bytes.
std::size_t resident_bytes();

/// Bytes of [address, address + size) that are resident, by page (mincore). Exact for private anonymous
/// memory.
std::size_t resident_bytes(const void* address, std::size_t size);

/// Sum of Rss over the mappings of /proc/self/smaps that overlap the range. It includes a mapping's pages
/// outside of the range: the kernel may merge a range with its neighbours.
std::size_t smaps_rss_bytes(const void* address, std::size_t size);

}  // namespace mixed_kv::test
