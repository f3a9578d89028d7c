#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "host_cpu.h"
#include "kv_buffer.h"

namespace mixed_kv::plugin {

// K-shifts of one split (llama.cpp's graph has one in-place ROPE per layer): planned one by one, then done
// together. Whatever can fail does so while planning, so that either all layers are shifted or none: the host
// repeats a K-shift that failed.
class KeyShifts {
  public:
    explicit KeyShifts(HostCpu& cpu) : cpu_(cpu) {}
    KeyShifts(const KeyShifts&) = delete;
    KeyShifts& operator=(const KeyShifts&) = delete;

    // op: OpKind::shift. Throws Error or std::bad_alloc when memory is refused; call abandon() after that, or
    // when the status is not success.
    ggml_status add(ggml_tensor* op);
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
    std::shared_ptr<const Cells> read_cells(const ggml_tensor* shifts);
    ggml_status read_turns(const ggml_tensor* op, const RotaryPairs& pairs, const Cells& cells,
                           std::vector<float>& turns);

    HostCpu& cpu_;
    std::shared_ptr<const Cells> last_cells_;
    std::vector<std::unique_ptr<Pending>> pending_;
};

// Where a K-shift's pairs are in a head of head_dim channels. False when its ROPE turns anything else.
bool rotary_pairs(const ggml_tensor* op, std::size_t row_offset, RotaryPairs& pairs, int& head_dim);

}  // namespace mixed_kv::plugin
