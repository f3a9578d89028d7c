#include "mixed-kv-bench/read_bandwidth.h"

#include <fmt/format.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <barrier>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <stdexcept>
#include <thread>

#include "mixed-kv-bench/statistics.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace mixed_kv::tools {

namespace {

constexpr std::size_t kLine = 64;
constexpr std::size_t kHugePage = std::size_t(2) << 20;

// Reads n_streams interleaved pieces of [at, at + bytes), `ahead` bytes of software prefetch, 0: none.
// Returns something that depends on all of it. bytes: a multiple of 256 * n_streams.
using Reader = std::uint64_t (*)(const std::byte* at, std::size_t bytes, int n_streams, std::size_t ahead);

#if defined(__x86_64__)
#define MIXED_KV_DEFINE_READER(NAME, TARGET, VECTOR, LOAD, XOR, ZERO, WIDTH)                            \
    template <int kStreams, bool kPrefetch>                                                             \
    __attribute__((target(TARGET)))                                                                     \
    std::uint64_t NAME##_streams(const std::byte* at, std::size_t bytes, std::size_t ahead) {           \
        const std::size_t piece = bytes / kStreams;                                                     \
        VECTOR sum[4] = {ZERO, ZERO, ZERO, ZERO};                                                       \
        for (std::size_t i = 0; i < piece; i += 256) {                                                  \
            for (int s = 0; s < kStreams; ++s) {                                                        \
                const std::byte* p = at + std::size_t(s) * piece + i;                                   \
                if constexpr (kPrefetch) {                                                              \
                    for (std::size_t line = 0; line < 256; line += kLine)                               \
                        _mm_prefetch(reinterpret_cast<const char*>(p + ahead + line), _MM_HINT_T0);     \
                }                                                                                       \
                for (int j = 0; j < 256 / WIDTH; ++j)                                                   \
                    sum[j % 4] = XOR(sum[j % 4], LOAD(reinterpret_cast<const VECTOR*>(p + j * WIDTH))); \
            }                                                                                           \
        }                                                                                               \
        std::uint64_t parts[WIDTH / 8], result = 0;                                                     \
        for (const VECTOR& v : sum) {                                                                   \
            std::memcpy(parts, &v, sizeof parts);                                                       \
            for (const std::uint64_t x : parts) result ^= x;                                            \
        }                                                                                               \
        return result;                                                                                  \
    }                                                                                                   \
    std::uint64_t NAME(const std::byte* at, std::size_t bytes, int n_streams, std::size_t ahead) {      \
        switch (n_streams) {                                                                            \
            case 1:                                                                                     \
                return ahead ? NAME##_streams<1, true>(at, bytes, ahead)                                \
                             : NAME##_streams<1, false>(at, bytes, 0);                                  \
            case 2:                                                                                     \
                return ahead ? NAME##_streams<2, true>(at, bytes, ahead)                                \
                             : NAME##_streams<2, false>(at, bytes, 0);                                  \
            case 4:                                                                                     \
                return ahead ? NAME##_streams<4, true>(at, bytes, ahead)                                \
                             : NAME##_streams<4, false>(at, bytes, 0);                                  \
            default:                                                                                    \
                return ahead ? NAME##_streams<8, true>(at, bytes, ahead)                                \
                             : NAME##_streams<8, false>(at, bytes, 0);                                  \
        }                                                                                               \
    }

MIXED_KV_DEFINE_READER(read_sse2, "sse2", __m128i, _mm_load_si128, _mm_xor_si128, _mm_setzero_si128(), 16)
MIXED_KV_DEFINE_READER(read_avx2, "avx2", __m256i, _mm256_load_si256, _mm256_xor_si256,
                       _mm256_setzero_si256(), 32)
MIXED_KV_DEFINE_READER(read_avx512, "avx512f", __m512i, _mm512_load_si512, _mm512_xor_si512,
                       _mm512_setzero_si512(), 64)
#undef MIXED_KV_DEFINE_READER

struct ReaderChoice {
    Reader reader;
    const char* name;
};
ReaderChoice best_reader() {
    if (__builtin_cpu_supports("avx512f")) return {read_avx512, "64-byte loads"};
    if (__builtin_cpu_supports("avx2")) return {read_avx2, "32-byte loads"};
    return {read_sse2, "16-byte loads"};
}
#else
std::uint64_t read_words(const std::byte* at, std::size_t bytes, int, std::size_t) {
    std::uint64_t result = 0;
    for (std::size_t i = 0; i < bytes; i += sizeof result) {
        std::uint64_t word;
        std::memcpy(&word, at + i, sizeof word);
        result ^= word;
    }
    return result;
}
struct ReaderChoice {
    Reader reader;
    const char* name;
};
ReaderChoice best_reader() { return {read_words, "vector loads of the compiler"}; }
#endif

struct Pattern {
    int n_streams;
    std::size_t ahead;
};
constexpr Pattern kPatterns[] = {{1, 0},    {2, 0},    {4, 0},    {8, 0},    {1, 1024}, {2, 1024},
                                 {4, 1024}, {8, 1024}, {1, 4096}, {2, 4096}, {4, 4096}};

}  // namespace

std::size_t last_level_cache_bytes(const std::string& folder) {
    std::size_t largest = 0;
    for (int index = 0; index < 8; ++index) {
        std::ifstream file(fmt::format("{}/index{}/size", folder, index));
        std::size_t size = 0;
        char unit = 0;
        if (!(file >> size)) continue;
        file >> unit;
        largest = std::max(largest, size << (unit == 'K' ? 10 : unit == 'M' ? 20 : 0));
    }
    if (largest != 0) return largest;
    // Virtual machines and containers may hide the folder; glibc asks the CPU itself.
    for (const int level : {_SC_LEVEL4_CACHE_SIZE, _SC_LEVEL3_CACHE_SIZE, _SC_LEVEL2_CACHE_SIZE}) {
        if (const long size = sysconf(level); size > 0) return std::size_t(size);
    }
    return 0;
}

struct ReadBandwidth::Workers {
    explicit Workers(int n) : n_threads(n), start(n + 1), done(n + 1) {
        for (int i = 0; i < n; ++i) threads.emplace_back([this, i] { loop(i); });
    }
    ~Workers() {
        stop = true;
        start.arrive_and_wait();
        for (std::thread& t : threads) t.join();
    }
    void loop(int thread) {
        for (;;) {
            start.arrive_and_wait();
            if (stop) return;
            const std::size_t piece = bytes / std::size_t(n_threads);
            std::byte* mine = at + std::size_t(thread) * piece;
            if (reader == nullptr) {  // first touch: by the thread that reads it later
                std::memset(mine, thread + 1, piece);
            } else {
                sink ^= reader(mine, piece, pattern.n_streams, pattern.ahead);
            }
            done.arrive_and_wait();
        }
    }
    // Seconds.
    double run() {
        const auto begin = std::chrono::steady_clock::now();
        start.arrive_and_wait();
        done.arrive_and_wait();
        return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    }

    int n_threads;
    std::barrier<> start, done;
    std::atomic<bool> stop{false};
    std::atomic<std::uint64_t> sink{0};
    Reader reader = nullptr;
    Pattern pattern{1, 0};
    std::byte* at = nullptr;
    std::size_t bytes = 0;
    std::vector<std::thread> threads;
};

ReadBandwidth::ReadBandwidth(std::size_t buffer_bytes, int n_threads) : n_threads_(n_threads) {
    const std::size_t unit = kHugePage * std::size_t(n_threads);
    buffer_bytes_ = (buffer_bytes + unit - 1) / unit * unit;
    mapped_ = buffer_bytes_ + 2 * kHugePage;  // alignment; prefetches beyond the end
    void* p =
        mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) {
        throw std::runtime_error(fmt::format("cannot get {} MiB to measure the read bandwidth: {}",
                                             buffer_bytes_ >> 20, std::strerror(errno)));
    }
    base_ = p;
    madvise(base_, mapped_, MADV_HUGEPAGE);
    const std::size_t skew = std::size_t(reinterpret_cast<std::uintptr_t>(p) % kHugePage);
    buffer_ = static_cast<std::byte*>(p) + (skew == 0 ? 0 : kHugePage - skew);
    workers_ = std::make_unique<Workers>(n_threads);
    workers_->at = buffer_;
    workers_->bytes = buffer_bytes_;
    workers_->run();
    workers_->reader = best_reader().reader;
    groups_.emplace_back();
}

ReadBandwidth::~ReadBandwidth() {
    workers_.reset();
    munmap(base_, mapped_);
}

double ReadBandwidth::run(int pattern, std::size_t offset, std::size_t bytes) {
    workers_->pattern = kPatterns[pattern];
    workers_->at = buffer_ + offset;
    workers_->bytes = bytes;
    return double(bytes) / workers_->run();
}

void ReadBandwidth::choose_pattern(int n_passes) {
    double best = 0;
    for (int pattern = 0; pattern < int(std::size(kPatterns)); ++pattern) {
        std::vector<double> samples;
        for (int pass = 0; pass < n_passes; ++pass) samples.push_back(run(pattern, 0, buffer_bytes_));
        const double median = spread_of(samples).median;
        if (median <= best) continue;
        best = median;
        pattern_ = pattern;
        groups_ = {samples};
    }
}

void ReadBandwidth::sample(std::size_t bytes) {
    const std::size_t unit = kHugePage * std::size_t(n_threads_);
    bytes = std::clamp(bytes / unit * unit, unit, buffer_bytes_);
    if (next_ + bytes > buffer_bytes_) next_ = 0;
    groups_.back().push_back(run(pattern_, next_, bytes));
    next_ += bytes;
}

double ReadBandwidth::bytes_per_second() const {
    double best = 0;
    for (const auto& group : groups_) {
        if (group.size() >= 3 || groups_.size() == 1) best = std::max(best, spread_of(group).median);
    }
    return best;
}

std::size_t ReadBandwidth::n_samples() const {
    std::size_t n = 0;
    for (const auto& group : groups_) n += group.size();
    return n;
}

std::string ReadBandwidth::pattern() const {
    const Pattern& p = kPatterns[pattern_];
    return fmt::format("{}, {} stream{} per thread, {}", best_reader().name, p.n_streams,
                       p.n_streams == 1 ? "" : "s",
                       p.ahead == 0 ? std::string("no software prefetch")
                                    : fmt::format("prefetched {} bytes ahead", p.ahead));
}

}  // namespace mixed_kv::tools
