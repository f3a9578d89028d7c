// A restored state: FP16 rows written into a tensor as a host writes them, in one piece, beside the encode
// kernels alone on the same rows and threads. Counters: bytes of FP16 per second.
//
//   bench-restore --benchmark_min_time=1
#include <benchmark/benchmark.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "kernels/contract.h"
#include "mixed_kv/isa.h"
#include "mixed_kv/kv_tensor.h"
#include "mixed_kv/page_arena.h"
#include "mixed_kv/window_tracker.h"

namespace {

using namespace mixed_kv;

constexpr std::int64_t kCells = 8192;
constexpr HeadShape kShape{8, 128};

void on_threads(std::size_t n_threads, std::size_t n, const std::function<void(std::size_t)>& job) {
    std::atomic<std::size_t> next{0};
    const auto work = [&] {
        for (std::size_t i = next++; i < n; i = next++) job(i);
    };
    std::vector<std::thread> threads;
    for (std::size_t t = 1; t < n_threads; ++t) threads.emplace_back(work);
    work();
    for (std::thread& thread : threads) thread.join();
}

std::vector<fp16_t> random_rows() {
    std::vector<fp16_t> rows(std::size_t(kCells) * std::size_t(kShape.row_elements()));
    std::uint64_t state = 1;
    for (fp16_t& value : rows) {
        float sum = 0;  // about normal
        for (int i = 0; i < 4; ++i) {
            state = state * 6364136223846793005u + 1442695040888963407u;
            sum += float(state >> 40) / float(1 << 24) - 0.5f;
        }
        value = fp32_to_fp16(sum * 1.7f);
    }
    return rows;
}

const std::vector<fp16_t>& rows() {
    static const std::vector<fp16_t> all = random_rows();
    return all;
}

void restore(benchmark::State& state, const char* format, KvRole role, bool aligned) {
    PageArena arena;
    WindowTracker tracker({kCells + 64, 1, 64, 4});
    KvTensor::Config config{
        role,   kCells + 64, 1, kShape.row_elements(), find_cold_format(format), &kernel_set(""),
        &arena, &tracker};
    const auto n_threads = std::size_t(state.range(0));
    config.parallel = [n_threads](std::size_t n, const std::function<void(std::size_t)>& job) {
        on_threads(n_threads, n, job);
    };
    KvTensor tensor(config);
    if (!tensor.set_head_shape(kShape)) state.SkipWithError("the shape is refused");
    const std::size_t bytes = rows().size() * sizeof(fp16_t);
    const std::size_t row_bytes = std::size_t(kShape.row_elements()) * sizeof(fp16_t);
    for (auto _ : state) {
        tensor.write_bytes((aligned ? 0 : 29) * row_bytes, rows().data(), bytes);
        state.PauseTiming();
        tensor.clear();
        tracker.clear();
        state.ResumeTiming();
    }
    state.SetBytesProcessed(std::int64_t(state.iterations()) * std::int64_t(bytes));
}

void encode(benchmark::State& state, const char* format, KvRole role) {
    const auto n_threads = std::size_t(state.range(0));
    const ColdFormat* cold = find_cold_format(format);
    const auto& codec = kernel_set("").formats[cold - cold_formats().data()];
    const std::size_t block = cold->block_bytes(role, kShape.head_dim);
    const std::size_t page = block * std::size_t(kShape.n_head);
    std::vector<std::byte> out(page * std::size_t(kCells / 64) + 64);
    std::byte* base = out.data() + (64 - reinterpret_cast<std::uintptr_t>(out.data()) % 64) % 64;
    for (auto _ : state) {
        on_threads(n_threads, std::size_t(kCells / 64), [&](std::size_t i) {
            for (int head = 0; head < kShape.n_head; ++head) {
                (role == KvRole::key ? codec.encode_key : codec.encode_value)(
                    {rows().data() + i * 64 * std::size_t(kShape.row_elements()) + head * kShape.head_dim,
                     kShape.row_elements(), kShape.head_dim, ~std::uint64_t{0},
                     base + i * page + std::size_t(head) * block});
            }
        });
    }
    state.SetBytesProcessed(std::int64_t(state.iterations()) * std::int64_t(rows().size() * sizeof(fp16_t)));
}

}  // namespace

int main(int argc, char** argv) {
    const auto n = std::int64_t(std::max(1u, std::thread::hardware_concurrency()));
    for (const char* format : {"q8", "q4", "q3", "q2"}) {
        for (const KvRole role : {KvRole::key, KvRole::value}) {
            const std::string name = std::string(format) + (role == KvRole::key ? "/K" : "/V");
            benchmark::RegisterBenchmark(("encode/" + name).c_str(), encode, format, role)
                ->Arg(n)
                ->UseRealTime();
            benchmark::RegisterBenchmark(("restore/" + name).c_str(), restore, format, role, true)
                ->Arg(n)
                ->UseRealTime();
            benchmark::RegisterBenchmark(("restore-between-pages/" + name).c_str(), restore, format, role,
                                         false)
                ->Arg(n)
                ->UseRealTime();
        }
    }
    benchmark::Initialize(&argc, argv);
    if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
    benchmark::RunSpecifiedBenchmarks();
    return 0;
}
