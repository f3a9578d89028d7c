#pragma once

#include <ggml.h>

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "ggml_op/ggml_block_kernels.h"
#include "mixed_kv/page.h"

namespace mixed_kv::ggml_op {

// 64-byte aligned memory of fixed size, zero at first.
class PageMemory {
  public:
    PageMemory() = default;
    ~PageMemory();
    PageMemory(const PageMemory&) = delete;
    PageMemory& operator=(const PageMemory&) = delete;
    void allocate(std::size_t bytes);
    std::byte* data() const noexcept { return data_; }

  private:
    std::byte* data_ = nullptr;
};

// The K or the V side of the op: which cell each row of the inputs has, and the pages made of them.
// Everything that depends on shapes only is laid out once; fill() copies the rows of one graph run.
class CachePages {
  public:
    struct Shape {
        KvRole role = KvRole::key;
        HeadShape heads;
        std::int64_t n_kv = 0;
    };
    // Where the rows lie; empty lists: cold rows first, 64 or fewer to a page, then hot rows.
    struct Cells {
        std::span<const std::int32_t> rows;   // cell of every hot row
        std::span<const std::int32_t> pages;  // first cell of every cold page
        bool given = false;
    };

    // hot: f16 [head_dim, n_hot, n_head_kv] or null; cold: i8 [block_bytes, n_head_kv, n_pages] or a block
    // type [head_dim, n_cold, n_head_kv], or null. format: registered name for i8. Throws Error; name is "k"
    // or "v".
    void lay_out(const char* name, const Shape& shape, const ggml_tensor* hot, const ggml_tensor* cold,
                 const std::string& format, const Cells& cells, const BlockKernelSet& kernels);

    // Copies the rows out of the tensors, which have the shapes and strides given to lay_out(). Throws Error
    // for a block that is none: its bytes come from anywhere, and kernels trust them.
    void fill(const ggml_tensor* hot, const ggml_tensor* cold);

    PageTable table() const noexcept { return {pages_.data(), std::int64_t(pages_.size()), layout_}; }
    // Cells that rows were given for, before n_kv is applied.
    static std::int64_t default_n_kv(const ggml_tensor* hot, const ggml_tensor* cold) noexcept;

  private:
    void check_hot(const ggml_tensor* hot) const;
    std::int64_t check_cold(const ggml_tensor* cold, const std::string& format,
                            const BlockKernelSet& kernels);
    void check_blocks() const;
    [[noreturn]] void fail(const char* tensor, const std::string& what) const;

    std::string name_;
    Shape shape_;
    PageLayout layout_;
    bool blocks_of_ggml_ = false;
    std::vector<Page> pages_;            // [ceil(n_kv / 64)]
    std::vector<std::int64_t> cold_at_;  // page index of every cold page of the input
    // Where each hot row goes: [n_hot] first element of head 0, and elements from one head to the next.
    struct RowTarget {
        fp16_t* data = nullptr;
        std::ptrdiff_t head_stride = 0;
    };
    std::vector<RowTarget> row_targets_;
    PageMemory hot_, overlay_, cold_;
};

}  // namespace mixed_kv::ggml_op
