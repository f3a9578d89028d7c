#include "malloc_hooks.h"

#include <dlfcn.h>
#include <execinfo.h>
#include <link.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace mixed_kv::test {
namespace {

constexpr int kMostFrames = 96;

std::atomic<FaultReport*> report{nullptr};
std::atomic<long> refuse_at{0}, seen{0};
Requests counted = Requests::all;

struct Stack {
    void* frames[kMostFrames];
    int n;
    // Whether a function of the plugin is on it.
    bool under_plugin() const {
        for (int i = 0; i < n; ++i) {
            dl_find_object found;  // dladdr would look for a symbol, too
            if (_dl_find_object(frames[i], &found) == 0 &&
                std::strstr(found.dlfo_link_map->l_name, "libggml-mixed-kv") != nullptr)
                return true;
        }
        return false;
    }
    // As text, without the innermost frames, which are ours.
    void write(char* out, int first) const {
        std::size_t at = 0;
        out[0] = '\0';
        for (int i = first; i < n && at + 200 < FaultReport::kText; ++i) {
            Dl_info info;
            const bool known = dladdr(frames[i], &info) != 0 && info.dli_fname != nullptr;
            const char* file = known ? std::strrchr(info.dli_fname, '/') : nullptr;
            const char* library = file != nullptr ? file + 1 : known ? info.dli_fname : "?";
            const auto address = static_cast<const char*>(frames[i]);
            if (known && info.dli_sname != nullptr) {
                at += std::size_t(std::snprintf(out + at, 180, "%s%s!%.120s", i > first ? " < " : "", library,
                                                info.dli_sname));
            } else {
                at += std::size_t(
                    std::snprintf(out + at, 180, "%s%s+%#tx", i > first ? " < " : "", library,
                                  known ? address - static_cast<const char*>(info.dli_fbase) : 0));
            }
        }
    }
};

__attribute__((noinline)) Stack stack_here() {
    Stack stack;
    stack.n = backtrace(stack.frames, kMostFrames);
    return stack;
}

// The request that is being made: counted, and whether it is refused.
__attribute__((noinline)) bool is_refused() {
    FaultReport* out = report.load(std::memory_order_relaxed);
    if (out == nullptr) return false;
    if (counted == Requests::all) {
        if (seen.fetch_add(1) + 1 != refuse_at) return false;
        const Stack stack = stack_here();
        out->refused_under_plugin = stack.under_plugin();
        stack.write(out->refused_at, 3);
    } else {
        const Stack stack = stack_here();
        if (!stack.under_plugin() || seen.fetch_add(1) + 1 != refuse_at) return false;
        out->refused_under_plugin = true;
        stack.write(out->refused_at, 3);
    }
    out->refused = true;
    errno = ENOMEM;
    return true;
}

void on_signal(int signal) {
    if (FaultReport* out = report.exchange(nullptr); out != nullptr) {
        const Stack stack = stack_here();
        out->n_requests = seen;
        out->signal = signal;
        out->died_under_plugin = stack.under_plugin();
        stack.write(out->died_at, 2);
    }
    std::signal(signal, SIG_DFL);
    std::raise(signal);
}

}  // namespace

void arm(Requests which, long n, FaultReport& out) {
    (void)stack_here();  // the first call loads a library
    for (const int signal : {SIGABRT, SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGALRM}) {
        struct sigaction action {};
        action.sa_handler = on_signal;
        action.sa_flags = SA_NODEFER;
        sigaction(signal, &action, nullptr);
    }
    counted = which;
    seen = 0;
    refuse_at = n;
    report = &out;
}

void disarm() {
    if (FaultReport* out = report.exchange(nullptr); out != nullptr) out->n_requests = seen;
}

}  // namespace mixed_kv::test

// glibc's own, under the names that it keeps for who stands before it.
extern "C" {
void* __libc_malloc(size_t);
void* __libc_calloc(size_t, size_t);
void* __libc_realloc(void*, size_t);
void* __libc_memalign(size_t, size_t);

#define MIXED_KV_EXPORT __attribute__((visibility("default")))

MIXED_KV_EXPORT void* malloc(size_t size) {
    return mixed_kv::test::is_refused() ? nullptr : __libc_malloc(size);
}
MIXED_KV_EXPORT void* calloc(size_t n, size_t size) {
    return mixed_kv::test::is_refused() ? nullptr : __libc_calloc(n, size);
}
MIXED_KV_EXPORT void* realloc(void* old, size_t size) {
    return mixed_kv::test::is_refused() ? nullptr : __libc_realloc(old, size);
}
MIXED_KV_EXPORT void* memalign(size_t alignment, size_t size) {
    return mixed_kv::test::is_refused() ? nullptr : __libc_memalign(alignment, size);
}
MIXED_KV_EXPORT void* aligned_alloc(size_t alignment, size_t size) {
    return mixed_kv::test::is_refused() ? nullptr : __libc_memalign(alignment, size);
}
MIXED_KV_EXPORT int posix_memalign(void** out, size_t alignment, size_t size) {
    void* p = mixed_kv::test::is_refused() ? nullptr : __libc_memalign(alignment, size);
    if (p == nullptr) return ENOMEM;
    *out = p;
    return 0;
}
}
