// Steady state allocates nothing. This binary counts every operator new.
#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <new>

#include "mixed_kv/isa.h"
#include "support/attention_case.h"

namespace {

std::atomic<long> allocations{0};

void* allocate(std::size_t size, std::size_t alignment) {
    ++allocations;
    const std::size_t rounded = (size + alignment - 1) / alignment * alignment;
    if (void* p = std::aligned_alloc(alignment, rounded == 0 ? alignment : rounded)) return p;
    throw std::bad_alloc();
}

}  // namespace

void* operator new(std::size_t size) { return allocate(size, alignof(std::max_align_t)); }
void* operator new(std::size_t size, std::align_val_t alignment) {
    return allocate(size, std::size_t(alignment));
}
void operator delete(void* p) noexcept { std::free(p); }
void operator delete(void* p, std::size_t) noexcept { std::free(p); }
void operator delete(void* p, std::align_val_t) noexcept { std::free(p); }
void operator delete(void* p, std::size_t, std::align_val_t) noexcept { std::free(p); }

namespace mixed_kv::test {
namespace {

TEST(FlashDecodeAllocation, OnlyTheFirstTime) {
    for (const std::int64_t n_q : {1, 40}) {
        CaseSpec spec;
        spec.n_q = n_q;
        spec.n_kv = 5000;
        spec.n_head = 8;
        spec.n_head_kv = 2;
        spec.k_format = spec.v_format = find_cold_format("q4");
        spec.k_mix = spec.v_mix = PageMix::all_states;
        spec.mask = MaskForm::causal;
        spec.max_bias = 8.0f;
        const kernels::KernelSet& set = kernel_set("");
        AttentionCase c(spec, set);
        AttentionArgs args = c.args();
        MaskPages mask_pages;
        FlashDecode decode(set);
        const auto step = [&] {
            mask_pages.classify(args.mask, args.n_stream, args.n_q, args.n_kv);
            decode.plan(args, mask_pages, 3);
            decode.run_serial();
        };
        step();
        const std::size_t bytes = decode.workspace_bytes();
        EXPECT_GT(bytes, 0u);
        const long before = allocations;
        for (args.n_kv = 5000; args.n_kv > 4000; args.n_kv -= 300) step();
        EXPECT_EQ(allocations - before, 0);
        EXPECT_EQ(decode.workspace_bytes(), bytes);
    }
}

}  // namespace
}  // namespace mixed_kv::test
