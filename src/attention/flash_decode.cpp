#include "mixed_kv/flash_decode.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <utility>

#include "attention/item_runner.h"
#include "attention/plan.h"
#include "attention/scratch.h"

namespace mixed_kv {

using attention::Buffer;
using attention::Item;
using attention::ItemRunner;
using attention::MergeJob;
using attention::Plan;
using attention::round_up;
using attention::Scratch;
using attention::Sizes;
using attention::Tile;

// Few query rows take several pages in each step of the softmax: what is done once per row (the largest
// score, the rescaled sums) and what waits for it is then shared by these pages. Scores of more rows would
// leave L1, and more rows wait less.
static constexpr int kGroupRows = 8;

struct ThreadScratch::Impl {
    Buffer buffer;
    std::size_t bytes_per_thread = 0;

    void reserve(std::size_t bytes, int n_threads) {
        bytes_per_thread = std::max(bytes_per_thread, bytes);
        buffer.reserve(bytes_per_thread * std::size_t(n_threads));
    }
    std::byte* of(int thread) const noexcept {
        return buffer.data() + std::size_t(thread) * bytes_per_thread;
    }
};

ThreadScratch::ThreadScratch() : impl_(std::make_unique<Impl>()) {}
ThreadScratch::~ThreadScratch() = default;

struct FlashDecode::Impl {
    Impl(const kernels::KernelSet& kernel_set, std::shared_ptr<ThreadScratch> thread_scratch)
        : set(kernel_set), shared(std::move(thread_scratch)), scratch(*shared->impl_) {}

    const kernels::KernelSet& set;
    AttentionArgs args;
    Plan plan;
    Sizes sizes;
    std::size_t scratch_bytes = 0;  // of one thread
    std::shared_ptr<ThreadScratch> shared;
    ThreadScratch::Impl& scratch;
    Buffer states;  // o [n_states][o_stride], then m [n_states], l [n_states]
    int n_threads = 1;
    // Own cache lines: every thread writes them.
    alignas(64) std::atomic<std::size_t> next_item{0};
    alignas(64) std::atomic<std::size_t> next_merge{0};

    float* state_o(std::int64_t state) const noexcept {
        return reinterpret_cast<float*>(states.data()) + state * sizes.o_stride;
    }
    float* state_m(std::int64_t state) const noexcept { return state_o(plan.n_states()) + state; }
    float* state_l(std::int64_t state) const noexcept { return state_m(plan.n_states()) + state; }

    void set_sizes();
    void finish_item(const Item& item, const Scratch& s) noexcept;
    void merge_rows(const MergeJob& job, float* o) noexcept;
    void write_row(const Tile& tile, int row, const float* o, float m, float l) noexcept;
};

void FlashDecode::Impl::set_sizes() {
    sizes.max_rows = plan.max_rows();
    sizes.block_rows = std::min(plan.max_rows(), set.max_rows);
    sizes.group_pages = plan.max_rows() <= kGroupRows ? set.softmax_pages : 1;
    sizes.q_stride = round_up(args.head_dim_k, 16);
    sizes.o_stride = round_up(args.head_dim_v, 16);
    sizes.v_stride = round_up(std::max(args.head_dim_k, args.head_dim_v), 16);
    sizes.v_rotation = args.v_is_k ? 1 : hadamard_size(args.head_dim_v);
    sizes.kernel_bytes = set.scratch_bytes(std::max(args.head_dim_k, args.head_dim_v));
    scratch_bytes = Scratch::bytes(sizes);
}

// Puts the state an item has left in the scratch where it belongs.
void FlashDecode::Impl::finish_item(const Item& item, const Scratch& s) noexcept {
    const Tile& tile = plan.tiles()[std::size_t(item.tile)];
    const int n_rows = tile.n_rows();
    if (tile.first_state < 0) {
        for (int row = 0; row < n_rows; ++row) {
            write_row(tile, row, s.o + row * sizes.o_stride, s.m[row], s.l[row]);
        }
        return;
    }
    const std::int64_t first = tile.first_state + std::int64_t(item.part) * n_rows;
    std::copy_n(s.o, n_rows * sizes.o_stride, state_o(first));
    std::copy_n(s.m, n_rows, state_m(first));
    std::copy_n(s.l, n_rows, state_l(first));
}

// Joins the parts of a few rows, in the order of their pages.
void FlashDecode::Impl::merge_rows(const MergeJob& job, float* o) noexcept {
    const Tile& tile = plan.tiles()[std::size_t(job.tile)];
    const int n_rows = tile.n_rows();
    for (int row = job.row0; row < job.row0 + job.n_rows; ++row) {
        float m = -std::numeric_limits<float>::infinity();
        for (int part = 0; part < tile.n_parts; ++part) {
            m = std::max(m, *state_m(tile.first_state + std::int64_t(part) * n_rows + row));
        }
        float l = 0.0f;
        std::fill_n(o, args.head_dim_v, 0.0f);
        for (int part = 0; part < tile.n_parts; ++part) {
            const std::int64_t state = tile.first_state + std::int64_t(part) * n_rows + row;
            if (*state_l(state) == 0.0f) continue;  // saw no cell
            const float weight = std::exp(*state_m(state) - m);
            l += weight * *state_l(state);
            const float* part_o = state_o(state);
            for (int d = 0; d < args.head_dim_v; ++d) o[d] += weight * part_o[d];
        }
        write_row(tile, row, o, m, l);
    }
}

// out = o / l, a learned sink taking its share of l. A row that saw no cell becomes 0.
void FlashDecode::Impl::write_row(const Tile& tile, int row, const float* o, float m, float l) noexcept {
    const int head = tile.head0 + row % tile.n_head;
    const std::int64_t query = tile.q0 + row / tile.n_head;
    auto* out = reinterpret_cast<float*>(reinterpret_cast<std::byte*>(args.out) +
                                         tile.stream * args.out_stream_stride + query * args.out_row_stride +
                                         head * args.out_head_stride);
    if (l == 0.0f) {
        std::fill_n(out, args.head_dim_v, 0.0f);
        return;
    }
    float weight = 1.0f;
    if (args.sinks != nullptr) {
        const float sink = args.sinks[head];
        const float max = std::max(m, sink);
        weight = std::exp(m - max);
        l = l * weight + std::exp(sink - max);
    }
    weight /= l;
    for (int d = 0; d < args.head_dim_v; ++d) out[d] = o[d] * weight;
}

FlashDecode::FlashDecode(const kernels::KernelSet& kernels, std::shared_ptr<ThreadScratch> scratch)
    : impl_(std::make_unique<Impl>(
          kernels, scratch != nullptr ? std::move(scratch) : std::make_shared<ThreadScratch>())) {}
FlashDecode::~FlashDecode() = default;

void FlashDecode::plan(const AttentionArgs& args, const MaskPages& mask_pages, int n_threads) {
    Impl& impl = *impl_;
    impl.args = args;
    impl.n_threads = std::max(n_threads, 1);
    impl.plan.build(args, mask_pages, impl.n_threads);
    impl.set_sizes();
    impl.scratch.reserve(impl.scratch_bytes, impl.n_threads);
    impl.states.reserve(std::size_t(impl.plan.n_states() * (impl.sizes.o_stride + 2)) * sizeof(float));
    impl.next_item.store(0, std::memory_order_relaxed);
    impl.next_merge.store(0, std::memory_order_relaxed);
}

void FlashDecode::run(int thread) noexcept {
    Impl& impl = *impl_;
    const Scratch scratch(impl.sizes, impl.scratch.of(thread));
    ItemRunner runner(impl.args, impl.set, impl.plan, impl.sizes, scratch);
    const auto& items = impl.plan.items();
    for (;;) {
        const std::size_t i = impl.next_item.fetch_add(1, std::memory_order_relaxed);
        if (i >= items.size()) return;
        runner.run(items[i]);
        impl.finish_item(items[i], scratch);
    }
}

void FlashDecode::merge(int thread) noexcept {
    Impl& impl = *impl_;
    const Scratch scratch(impl.sizes, impl.scratch.of(thread));
    const auto& jobs = impl.plan.merge_jobs();
    for (;;) {
        const std::size_t i = impl.next_merge.fetch_add(1, std::memory_order_relaxed);
        if (i >= jobs.size()) return;
        impl.merge_rows(jobs[i], scratch.o);
    }
}

void FlashDecode::run_serial() noexcept {
    run(0);
    merge(0);
}

std::size_t FlashDecode::workspace_bytes() const noexcept {
    return impl_->scratch.buffer.size() + impl_->states.size() + impl_->plan.bytes();
}

std::size_t FlashDecode::scratch_bytes_per_thread() const noexcept { return impl_->scratch_bytes; }

}  // namespace mixed_kv
