// Kernels one at a time, for every instruction set and format this CPU runs:
//
//   bench-kernels --benchmark_filter='qk_q4.*avx2'
//
// Attention kernels walk through many distinct pages, 1 GiB and at least twice a common L3 in total, so that
// they read DRAM; read_memory is what plain loads reach on the same buffer, in the same run. Compare
// bytes_per_second with it: a share above 1 means that the benchmark is broken. Those whose name ends in
// /cached go round 16 pages instead, which an L2 holds: the arithmetic alone. Encoders and tiles work on
// data in L1/L2, as they do in the cache and the tile path; ns_per_value and GFLOP/s say how fast.

#include <benchmark/benchmark.h>
#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "formats/codec.h"
#include "kernels/contract.h"
#include "mixed_kv/cold_format.h"
#include "mixed_kv/fp16.h"
#include "mixed_kv/isa.h"

namespace {

using namespace mixed_kv;

constexpr std::size_t kPoolBytes = std::size_t{1} << 30;

// One buffer for all cases. Untouched pages of it would all be the same zero page, so every byte is written.
std::byte* pool() {
    static std::byte* memory = [] {
        void* p = mmap(nullptr, kPoolBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (p == MAP_FAILED) {
            std::perror("bench-kernels: 1 GiB");
            std::exit(1);
        }
        return static_cast<std::byte*>(p);
    }();
    return memory;
}

std::vector<std::uint16_t> random_rows(int head_dim, int pages) {
    std::mt19937 rng(1);
    std::normal_distribution<float> normal;
    std::vector<std::uint16_t> rows(std::size_t(pages) * kPageTokens * head_dim);
    for (std::uint16_t& x : rows) {
        x = fp32_to_fp16(normal(rng));
    }
    return rows;
}

// Fills the pool with copies of a few distinct blocks; returns how many fit.
std::size_t fill_pool(const std::vector<std::byte>& blocks, std::size_t block_bytes) {
    static const std::byte* last = nullptr;
    static std::vector<std::byte> filled;
    if (last != blocks.data() && filled != blocks) {
        for (std::size_t at = 0; at + blocks.size() <= kPoolBytes; at += blocks.size()) {
            std::memcpy(pool() + at, blocks.data(), blocks.size());
        }
        filled = blocks;
    }
    return kPoolBytes / blocks.size() * (blocks.size() / block_bytes);
}

// format -1: FP16.
std::vector<std::byte> make_blocks(int format, KvRole role, int head_dim) {
    constexpr int n = 16;
    const auto rows = random_rows(head_dim, n);
    std::vector<std::byte> out;
    if (format < 0) {
        out.resize(rows.size() * 2);
        std::memcpy(out.data(), rows.data(), out.size());
        return out;
    }
    const ColdFormat& f = cold_formats()[format];
    const std::size_t bytes = f.block_bytes(role, head_dim);
    out.resize(n * bytes);
    for (int i = 0; i < n; ++i) {
        const kernels::EncodeArgs args{rows.data() + std::size_t(i) * kPageTokens * head_dim, head_dim,
                                       head_dim, ~std::uint64_t{0}, out.data() + i * bytes};
        role == KvRole::key ? formats::encode_key(f.code_bits, args)
                            : formats::encode_value(f.code_bits, args);
    }
    return out;
}

void read_memory(benchmark::State& state) {
    fill_pool(make_blocks(-1, KvRole::key, 128), 1);
    const auto* words = reinterpret_cast<const std::uint64_t*>(pool());
    constexpr std::size_t n = kPoolBytes / 4 / sizeof(std::uint64_t);
    for (auto _ : state) {
        std::uint64_t sums[4][8] = {};  // four streams
        for (std::size_t i = 0; i < n; i += 8) {
            for (int s = 0; s < 4; ++s) {
                for (int k = 0; k < 8; ++k) {
                    sums[s][k] += words[s * n + i + k];
                }
            }
        }
        benchmark::DoNotOptimize(sums);
    }
    state.SetBytesProcessed(std::int64_t(state.iterations()) * std::int64_t(kPoolBytes));
}

void attention(benchmark::State& state, const kernels::KernelSet* set, int format, KvRole role, int head_dim,
               int rows, bool cached) {
    const std::size_t bytes = format < 0 ? std::size_t(kPageTokens) * head_dim * 2
                                         : cold_formats()[format].block_bytes(role, head_dim);
    const std::size_t n_filled = fill_pool(make_blocks(format, role, head_dim), bytes);
    const std::size_t n_blocks = cached ? 16 : n_filled;
    const int stride = (head_dim + 15) / 16 * 16;
    std::vector<float> q(std::size_t(rows) * stride, 0.03f), p(std::size_t(rows) * kPageTokens, 0.5f);
    std::vector<float> scores(p.size()), o(q.size());
    const std::vector<float> mass(std::size_t(rows), 1000.0f);  // of a long context: one pass over each page
    for (std::size_t i = 0; i < q.size(); ++i) q[i] *= float(i % 13) - 6.0f;
    for (std::size_t i = 0; i < p.size(); ++i) p[i] *= float(i % 11) * 0.1f;
    auto* scratch =
        static_cast<std::byte*>(std::aligned_alloc(64, (set->scratch_bytes(head_dim) + 63) / 64 * 64));
    std::size_t at = 0;
    for (auto _ : state) {
        for (int i = 0; i < 64; ++i) {  // a run of pages, as one head's part of a split has them
            kernels::PageData page{pool() + at * bytes, std::ptrdiff_t(head_dim) * 2, kPageTokens, head_dim};
            at = at + 1 == n_blocks ? 0 : at + 1;
            page.next = pool() + at * bytes;
            if (role == KvRole::key) {
                const kernels::QkArgs args{page, q.data(), stride, rows, scores.data(), scratch};
                format < 0 ? set->qk_f16(args) : set->formats[format].qk(args);
            } else {
                const kernels::PvArgs args{page, p.data(), rows, o.data(), stride, scratch, mass.data()};
                format < 0 ? set->pv_f16(args) : set->formats[format].pv(args);
            }
        }
        benchmark::ClobberMemory();
    }
    std::free(scratch);
    state.SetBytesProcessed(std::int64_t(state.iterations()) * 64 * std::int64_t(bytes));
    state.counters["codes"] = benchmark::Counter(double(state.iterations()) * 64 * kPageTokens * head_dim,
                                                 benchmark::Counter::kIsRate);
}

void encode(benchmark::State& state, const kernels::KernelSet* set, int format, KvRole role, int head_dim) {
    const auto rows = random_rows(head_dim, 4);
    const ColdFormat& f = cold_formats()[format];
    auto* block = static_cast<std::byte*>(std::aligned_alloc(64, f.block_bytes(role, head_dim)));
    int i = 0;
    for (auto _ : state) {
        const kernels::EncodeArgs args{rows.data() + std::size_t(i) * kPageTokens * head_dim, head_dim,
                                       head_dim, ~std::uint64_t{0}, block};
        i = (i + 1) % 4;
        role == KvRole::key ? set->formats[format].encode_key(args) : set->formats[format].encode_value(args);
        benchmark::ClobberMemory();
    }
    std::free(block);
    state.counters["time_per_value"] =
        benchmark::Counter(double(state.iterations()) * kPageTokens * head_dim,
                           benchmark::Counter::kIsRate | benchmark::Counter::kInvert);
}

void gemm(benchmark::State& state, const kernels::KernelSet* set, int m, int n, int k) {
    std::vector<float> a(std::size_t(m) * k, 0.5f), b(std::size_t(k) * n, 0.25f), c(std::size_t(m) * n);
    for (auto _ : state) {
        set->gemm({a.data(), k, b.data(), n, c.data(), n, m, n, k, false});
        benchmark::ClobberMemory();
    }
    state.counters["flops"] =
        benchmark::Counter(2.0 * m * n * k * double(state.iterations()), benchmark::Counter::kIsRate);
}

void softmax(benchmark::State& state, const kernels::KernelSet* set, int rows) {
    std::vector<float> s(std::size_t(rows) * kPageTokens), m(rows, 0.0f), l(rows, 1.0f), rescale(rows);
    for (auto _ : state) {
        for (std::size_t i = 0; i < s.size(); ++i) s[i] = float(i % 17) - 8.0f;
        set->softmax({s.data(), rows, m.data(), l.data(), rescale.data()});
        benchmark::ClobberMemory();
    }
    state.counters["time_per_value"] =
        benchmark::Counter(double(state.iterations()) * double(s.size()),
                           benchmark::Counter::kIsRate | benchmark::Counter::kInvert);
}

void register_all() {
    benchmark::RegisterBenchmark("read_memory", read_memory);
    for (const std::string_view isa : supported_isas()) {
        const kernels::KernelSet* set = &kernel_set(isa);
        const auto name = [&](const std::string& what, const std::string& shape) {
            return what + "_" + std::string(isa) + "/" + shape;
        };
        std::vector<int> row_counts{1, 2, 3, 4, 8, 16, 32};
        if (set->max_rows > 32) row_counts.push_back(set->max_rows);
        for (int format = -1; format < int(cold_formats().size()); ++format) {
            const std::string f = format < 0 ? "f16" : std::string(cold_formats()[format].name);
            for (const KvRole role : {KvRole::key, KvRole::value}) {
                for (const int dim : {64, 128}) {
                    const std::string d = "head_dim:" + std::to_string(dim);
                    for (const int rows : row_counts) {
                        const std::string what = (role == KvRole::key ? "qk_" : "pv_") + f;
                        const std::string shape = d + "/rows:" + std::to_string(rows);
                        benchmark::RegisterBenchmark(name(what, shape).c_str(), attention, set, format, role,
                                                     dim, rows, false);
                        benchmark::RegisterBenchmark(name(what, shape + "/cached").c_str(), attention, set,
                                                     format, role, dim, rows, true);
                    }
                    if (format >= 0) {
                        const std::string what = (role == KvRole::key ? "encode_key_" : "encode_value_") + f;
                        benchmark::RegisterBenchmark(name(what, d).c_str(), encode, set, format, role, dim);
                    }
                }
            }
        }
        benchmark::RegisterBenchmark(name("gemm", "64x64x64").c_str(), gemm, set, 64, 64, 64);
        benchmark::RegisterBenchmark(name("gemm", "64x64x128").c_str(), gemm, set, 64, 64, 128);
        benchmark::RegisterBenchmark(name("gemm", "64x128x64").c_str(), gemm, set, 64, 128, 64);
        benchmark::RegisterBenchmark(name("gemm", "128x512x64").c_str(), gemm, set, 128, 512, 64);
        benchmark::RegisterBenchmark(name("softmax", "rows:4").c_str(), softmax, set, 4);
        benchmark::RegisterBenchmark(name("softmax", "rows:128").c_str(), softmax, set, 128);
    }
}

}  // namespace

int main(int argc, char** argv) {
    register_all();
    benchmark::Initialize(&argc, argv);
    if (benchmark::ReportUnrecognizedArguments(argc, argv)) {
        return 1;
    }
    benchmark::RunSpecifiedBenchmarks();
    return 0;
}
