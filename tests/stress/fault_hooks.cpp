#include "fault_hooks.h"

#include <dlfcn.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <new>

namespace mixed_kv::test {

namespace {

struct Countdown {
    std::atomic<long> left{-1};
    std::atomic<long> seen{0};
    std::atomic<bool> for_good{false};

    bool fails() {
        seen.fetch_add(1, std::memory_order_relaxed);
        long now = left.load(std::memory_order_relaxed);
        if (now < 0) return false;
        if (now > 0) {
            left.store(now - 1, std::memory_order_relaxed);
            return false;
        }
        if (!for_good) left = -1;
        return true;
    }
};

Countdown pages, records;

bool is_plugin_code(void* address) {
    // Filled when the first countdown starts: the plugin is loaded by then.
    Dl_info info;
    return dladdr(address, &info) != 0 && info.dli_fname != nullptr &&
           std::strstr(info.dli_fname, "libggml-mixed-kv") != nullptr;
}

}  // namespace

long fail_from(Memory kind, long n, bool for_good) {
    Countdown& countdown = kind == Memory::kPages ? pages : records;
    countdown.left = n;
    countdown.for_good = for_good;
    return countdown.seen.exchange(0);
}

}  // namespace mixed_kv::test

using namespace mixed_kv::test;

extern "C" __attribute__((visibility("default"))) void* mmap(void* address, size_t size, int protection,
                                                             int flags, int fd, off_t offset) noexcept {
    // Only the plugin maps memory like this.
    const bool ours =
        flags == (MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE) && protection == (PROT_READ | PROT_WRITE);
    if (ours && pages.fails()) {
        errno = ENOMEM;
        return MAP_FAILED;
    }
    return reinterpret_cast<void*>(syscall(SYS_mmap, address, size, protection, flags, fd, offset));
}

__attribute__((visibility("default"))) void* operator new(std::size_t size) {
    if (records.left.load(std::memory_order_relaxed) >= 0 && is_plugin_code(__builtin_return_address(0)) &&
        records.fails())
        throw std::bad_alloc();
    void* p = std::malloc(size == 0 ? 1 : size);
    if (p == nullptr) throw std::bad_alloc();
    return p;
}
__attribute__((visibility("default"))) void operator delete(void* p) noexcept { std::free(p); }
__attribute__((visibility("default"))) void operator delete(void* p, std::size_t) noexcept { std::free(p); }
