// Faults of the system, for tests: the executable that links this replaces mmap() and operator new for every
// library it loads.
#pragma once

#include <cstddef>

namespace mixed_kv::test {

// The n-th request for memory of this kind that the plugin makes from now on fails, and all after it when
// `for_good`. n < 0: none. Returns how many requests there have been since the last call.
enum class Memory {
    kPages,    // mmap of cache pages and of a cache's address range
    kRecords,  // operator new called by the plugin's own code
};
long fail_from(Memory kind, long n, bool for_good = false);

}  // namespace mixed_kv::test
