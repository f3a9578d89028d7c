#pragma once

#include <cstdint>
#include <vector>

namespace mixed_kv::tools {

// Half-open range of addresses of this process.
struct AddressRange {
    std::uintptr_t begin = 0;
    std::uintptr_t end = 0;
};

// Bytes of the ranges that are in memory now, as the kernel counts them, never a formula. Overlapping ranges
// count once. A mapping that lies wholly inside the ranges contributes its Rss of /proc/self/smaps; of a
// mapping that reaches beyond them (a heap block, or neighbours that the kernel joined) what lies inside the
// ranges on resident pages is counted with mincore(). Throws std::runtime_error when /proc/self/smaps cannot
// be read.
std::uint64_t resident_bytes(std::vector<AddressRange> ranges);

// MemAvailable: what programs can still have without swapping, as the kernel estimates it.
std::uint64_t available_memory_bytes();

// VmRSS and VmHWM of this process, bytes.
std::uint64_t process_resident_bytes();
std::uint64_t process_peak_resident_bytes();

}  // namespace mixed_kv::tools
