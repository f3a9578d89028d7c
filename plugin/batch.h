#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "ggml_contract/nodes.h"
#include "host_cpu.h"
#include "kv_buffer.h"
#include "mixed_kv/flash_decode.h"
#include "query_groups.h"

namespace mixed_kv::plugin {

// Consecutive native ops of one split (SET_ROWS of K and of V, FLASH_ATTN_EXT), planned serially on the
// calling thread and then run as one private graph of three nodes on the host's threads: store rows and
// freeze pages, attend, merge. Work too small to be worth waking threads runs on the calling thread.
class Batch {
  public:
    Batch(const kernels::KernelSet& kernels, HostCpu& cpu);
    ~Batch();
    Batch(const Batch&) = delete;
    Batch& operator=(const Batch&) = delete;

    bool empty() const noexcept { return writes_.empty() && n_attentions_ == 0; }
    // Whether an op on this entry can join what is already here.
    bool can_write(const KvBuffer& buffer, const KvEntry& entry) const noexcept;
    bool can_attend(const KvBuffer& buffer) const noexcept;

    // cells: the global cell of each row. Throws Error when memory is refused.
    void add_write(const CacheWrite& write, const std::vector<std::int64_t>& cells);
    // Heads must be known to its tensors. queries: all of its queries; must live until run().
    void add_attention(const CacheAttention& attention, const QueryGroups& queries);

    // Runs everything added and leaves the batch empty. Rows and freezes are never left half done.
    ggml_status run();

    // After a failure, also of run(): stores the rows that were announced to the cache, while their source is
    // still there, forgets everything else and lets go of the buffer.
    void abandon() noexcept;

  private:
    struct Attention;
    struct Graphs;
    void lock(KvBuffer& buffer);
    void add_queries(const CacheAttention& attention, const QueryGroups::Group& queries);
    void store(int thread) noexcept;
    void finish() noexcept;
    void keep_budget() noexcept;
    void step(int thread) noexcept;
    static void step_node(int thread, void* batch);
    static void store_node(int thread, void* batch);
    static void attend_node(int thread, void* batch);
    static void merge_node(int thread, void* batch);

    const kernels::KernelSet& kernels_;
    HostCpu& cpu_;
    KvBuffer* buffer_ = nullptr;
    std::unique_lock<std::recursive_mutex> lock_;
    struct Write {
        KvTensor* tensor;
        std::int64_t n_rows;
    };
    std::vector<Write> writes_;
    const std::function<void(std::size_t)>* step_job_ = nullptr;
    std::size_t n_step_jobs_ = 0;
    std::atomic<std::size_t> next_step_job_{0};
    std::atomic<int> next_job_{0};
    int n_jobs_ = 0;
    std::shared_ptr<ThreadScratch> scratch_ = std::make_shared<ThreadScratch>();
    std::vector<std::unique_ptr<Attention>> attentions_;  // reused from batch to batch
    std::size_t n_attentions_ = 0;
    double work_ = 0;  // rough multiply-accumulates
    std::unique_ptr<Graphs> graphs_;
};

}  // namespace mixed_kv::plugin
