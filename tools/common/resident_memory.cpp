#include "common/resident_memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <stdexcept>
#include <string>

namespace mixed_kv::tools {

namespace {

std::uint64_t page_size() {
    static const std::uint64_t size = static_cast<std::uint64_t>(sysconf(_SC_PAGESIZE));
    return size;
}

// Sorted, joined where they touch.
std::vector<AddressRange> normalised(std::vector<AddressRange> ranges) {
    std::erase_if(ranges, [](const AddressRange& range) { return range.begin >= range.end; });
    std::sort(ranges.begin(), ranges.end(),
              [](const AddressRange& a, const AddressRange& b) { return a.begin < b.begin; });
    std::vector<AddressRange> joined;
    for (const AddressRange& range : ranges) {
        if (!joined.empty() && range.begin <= joined.back().end) {
            joined.back().end = std::max(joined.back().end, range.end);
        } else {
            joined.push_back(range);
        }
    }
    return joined;
}

// Bytes of the range that lie on resident pages.
std::uint64_t resident_page_bytes(const AddressRange& range) {
    constexpr std::uint64_t kPagesAtOnce = 1 << 16;
    std::vector<unsigned char> in_core(kPagesAtOnce);
    std::uint64_t resident = 0;
    std::uintptr_t page = range.begin / page_size() * page_size();
    while (page < range.end) {
        const std::uint64_t n = std::min(kPagesAtOnce, (range.end - page + page_size() - 1) / page_size());
        if (mincore(reinterpret_cast<void*>(page), n * page_size(), in_core.data()) != 0) {
            throw std::runtime_error("mincore failed on a mapped range");
        }
        for (std::uint64_t i = 0; i < n; i++, page += page_size()) {
            if ((in_core[i] & 1) != 0) {
                resident += std::min<std::uintptr_t>(range.end, page + page_size()) -
                            std::max<std::uintptr_t>(range.begin, page);
            }
        }
    }
    return resident;
}

// A line of a file in /proc, like "VmRSS:   1234 kB".
std::uint64_t proc_bytes(const char* path, const char* format) {
    std::ifstream file(path);
    for (std::string line; std::getline(file, line);) {
        unsigned long long kib = 0;
        if (std::sscanf(line.c_str(), format, &kib) == 1) {
            return std::uint64_t{kib} * 1024;
        }
    }
    throw std::runtime_error(std::string("cannot read the memory use from ") + path);
}

}  // namespace

std::uint64_t resident_bytes(std::vector<AddressRange> ranges) {
    ranges = normalised(std::move(ranges));
    std::ifstream smaps("/proc/self/smaps");
    if (!smaps) {
        throw std::runtime_error("cannot read /proc/self/smaps");
    }
    std::uint64_t bytes = 0;
    bool whole = false;  // the mapping at hand lies inside one range
    std::vector<AddressRange> partial;
    for (std::string line; std::getline(smaps, line);) {
        unsigned long long from = 0, to = 0, kib = 0;
        char permission = 0;
        if (std::sscanf(line.c_str(), "%llx-%llx %c", &from, &to, &permission) == 3) {
            whole = false;
            for (const AddressRange& range : ranges) {
                const AddressRange common = {std::max<std::uintptr_t>(range.begin, from),
                                             std::min<std::uintptr_t>(range.end, to)};
                if (common.begin >= common.end) {
                    continue;
                }
                if (common.begin == from && common.end == to) {
                    whole = true;
                } else {
                    partial.push_back(common);
                }
            }
        } else if (whole && std::sscanf(line.c_str(), "Rss: %llu kB", &kib) == 1) {
            bytes += std::uint64_t{kib} * 1024;
        }
    }
    for (const AddressRange& range : partial) {
        bytes += resident_page_bytes(range);
    }
    return bytes;
}

std::uint64_t available_memory_bytes() { return proc_bytes("/proc/meminfo", "MemAvailable: %llu kB"); }

std::uint64_t process_resident_bytes() { return proc_bytes("/proc/self/status", "VmRSS: %llu kB"); }

std::uint64_t process_peak_resident_bytes() { return proc_bytes("/proc/self/status", "VmHWM: %llu kB"); }

}  // namespace mixed_kv::tools
