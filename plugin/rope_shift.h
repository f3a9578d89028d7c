#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "ggml_contract/nodes.h"
#include "host_cpu.h"

namespace mixed_kv::plugin {

// K-shifts of one split (llama.cpp's graph has one in-place ROPE per layer): planned one by one, then done
// together. Whatever can fail does so while planning, so that either all layers are shifted or none: the host
// repeats a K-shift that failed.
class KeyShifts {
  public:
    explicit KeyShifts(HostCpu& cpu) : cpu_(cpu) {}
    KeyShifts(const KeyShifts&) = delete;
    KeyShifts& operator=(const KeyShifts&) = delete;

    // op: the node that was matched as one. Throws Error or std::bad_alloc when memory is refused; call
    // abandon() after that, or when the status is not success.
    ggml_status add(const ggml_tensor* op, const CacheShift& shift);
    void commit() noexcept;
    void abandon() noexcept;

  private:
    // The shifts of a graph's input as kinds: the n-th distinct distance that is not 0 is kind n.
    struct Cells {
        const void* input = nullptr;
        std::vector<std::uint32_t> kinds;
        std::vector<std::int64_t> distances;
        std::vector<std::int32_t> positions;  // distances as ROPE takes them
    };
    struct Pending {
        KvTensor* tensor;
        std::shared_ptr<const Cells> cells;  // of all layers with the same input
        std::vector<float> turns;
        std::unique_lock<std::recursive_mutex> lock;
    };
    std::shared_ptr<const Cells> read_cells(const CacheShift& shift);
    ggml_status read_turns(const ggml_tensor* op, const CacheShift& shift, const Cells& cells,
                           std::vector<float>& turns);

    HostCpu& cpu_;
    std::shared_ptr<const Cells> last_cells_;
    std::vector<std::unique_ptr<Pending>> pending_;
};

}  // namespace mixed_kv::plugin
