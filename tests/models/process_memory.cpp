#include "process_memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace mixed_kv::test {

std::size_t resident_bytes() {
    std::ifstream status("/proc/self/status");
    for (std::string line; std::getline(status, line);) {
        unsigned long long kib = 0;
        if (std::sscanf(line.c_str(), "VmRSS: %llu kB", &kib) == 1) {
            return kib * 1024;
        }
    }
    throw std::runtime_error("no VmRSS in /proc/self/status");
}

std::size_t resident_bytes(const void* address, std::size_t size) {
    const std::size_t page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    const auto first = reinterpret_cast<std::uintptr_t>(address) / page * page;
    const auto last = (reinterpret_cast<std::uintptr_t>(address) + size + page - 1) / page * page;
    constexpr std::size_t kPagesAtOnce = 1 << 16;
    std::vector<unsigned char> in_core;
    std::size_t n_resident = 0;
    for (std::uintptr_t at = first; at < last; at += in_core.size() * page) {
        in_core.resize(std::min<std::size_t>(kPagesAtOnce, (last - at) / page));
        if (mincore(reinterpret_cast<void*>(at), in_core.size() * page, in_core.data()) != 0) {
            throw std::runtime_error("mincore: the range is not mapped");
        }
        for (const unsigned char flags : in_core) {
            n_resident += flags & 1u;
        }
    }
    return n_resident * page;
}

std::size_t smaps_rss_bytes(const void* address, std::size_t size) {
    const auto first = reinterpret_cast<std::uintptr_t>(address);
    std::ifstream smaps("/proc/self/smaps");
    std::size_t bytes = 0;
    bool overlaps = false;
    for (std::string line; std::getline(smaps, line);) {
        unsigned long long from = 0, to = 0, kib = 0;
        char permission = 0;
        if (std::sscanf(line.c_str(), "%llx-%llx %c", &from, &to, &permission) == 3) {
            overlaps = from < first + size && to > first;
        } else if (overlaps && std::sscanf(line.c_str(), "Rss: %llu kB", &kib) == 1) {
            bytes += kib * 1024;
        }
    }
    return bytes;
}

}  // namespace mixed_kv::test
