#pragma once

#include <map>
#include <string>
#include <vector>

#include "llama_driver.h"
#include "mixed_kv_api.h"
#include "random_model.h"

namespace mixed_kv::test {

// The plugin's own interface; fails the test when it is not loaded.
const mixed_kv_api& plugin_api();

// A random model, written once per process for each spec, removed at its end.
const std::string& random_model_file(const RandomModelSpec& spec);
// A llama whose weights are small beside its cache, without GQA; vocabulary of 320.
RandomModelSpec mostly_cache(std::uint32_t n_layer, std::uint32_t n_head, std::uint32_t head_dim);
// A small random llama (GQA 4, head_dim 64).
const std::string& small_model();

// Copies of the pages of every K and V tensor, taken while an attention node has just run.
struct PageCopy {
    int state = 0;
    std::uint64_t written = 0, overlay = 0;
    std::uint64_t cells = 0;       // cold only: those of the first block
    std::vector<std::byte> block;  // and the block, every head's
};
struct TensorPages {
    mixed_kv_tensor_info info;
    std::vector<PageCopy> pages;  // of stream 0
    // Storage of one cell: MIXED_KV_CELL_*.
    int cell(std::int64_t index) const;
};

// Records the pages of every cache tensor at the latest graph. Hand callback and this to ContextOptions.
class PageRecorder {
  public:
    static bool callback(ggml_tensor* node, bool ask, void* recorder);
    std::map<std::string, TensorPages> tensors;  // by name as created
    bool enabled = true;

  private:
    void record(const ggml_tensor* view);
};

}  // namespace mixed_kv::test
