#pragma once

#include <cstddef>
#include <new>

#include "kernels/contract.h"
#include "mixed_kv/flash_decode.h"

namespace mixed_kv::attention {

// Grow-only memory, 64-byte aligned, contents unspecified.
class Buffer {
  public:
    Buffer() = default;
    ~Buffer() { free(); }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;

    void reserve(std::size_t bytes) {
        if (bytes <= size_) return;
        free();
        data_ = static_cast<std::byte*>(::operator new (bytes, std::align_val_t{64}));
        size_ = bytes;
    }
    std::byte* data() const noexcept { return data_; }
    std::size_t size() const noexcept { return size_; }

  private:
    void free() noexcept {
        ::operator delete (data_, std::align_val_t{64});
        data_ = nullptr;
        size_ = 0;
    }
    std::byte* data_ = nullptr;
    std::size_t size_ = 0;
};

constexpr std::ptrdiff_t round_up(std::ptrdiff_t n, std::ptrdiff_t multiple) noexcept {
    return (n + multiple - 1) / multiple * multiple;
}

// Sizes shared by all threads of one op.
struct Sizes {
    int max_rows = 0;             // query rows of the largest tile
    int block_rows = 0;           // of these, what kernels take in one call
    int group_pages = 1;          // pages whose scores are held at a time
    std::ptrdiff_t q_stride = 0;  // floats of a q row, head_dim_k padded to 16
    std::ptrdiff_t o_stride = 0;  // floats of an output row, head_dim_v padded to 16
    std::ptrdiff_t v_stride = 0;  // floats of a decoded row, the wider of K and V padded to 16
    int v_rotation = 1;           // hadamard_size() of cold value pages, 1 when they are stored as they are
    std::size_t kernel_bytes = 0;
};

// One thread's memory while it works on an item; 64-byte aligned arrays.
struct Scratch {
    float* q;          // [max_rows][q_stride], kq_scale applied, padding 0
    float* q_turned;   // [max_rows][q_stride]: q for keys with a K-shift still to apply
    float* scores;     // [group_pages][max_rows][64]: scores, then logits, then p
    float* overlay;    // [block_rows][64]: scores, later p, of overlay rows
    float* o;          // [max_rows][o_stride]: sum of p * v
    float* o_rotated;  // [max_rows][o_stride]: the same in the rotated basis of cold values
    float* m;          // [max_rows] running maximum of the logits
    float* l;          // [max_rows] sum of exp(logit - m)
    float* rescale;    // [max_rows]
    float* slope;      // [max_rows] ALiBi slope of the row's head
    float* values;     // [64][v_stride] decoded values
    float* block;      // [64][v_stride] those of one of several blocks
    std::byte* kernel;

    static std::size_t bytes(const Sizes& s) noexcept { return lay_out(s, nullptr, nullptr); }
    Scratch(const Sizes& s, std::byte* base) noexcept { lay_out(s, base, this); }

  private:
    static std::size_t lay_out(const Sizes& s, std::byte* base, Scratch* out) noexcept {
        std::size_t at = 0;
        const auto take = [&](std::size_t n_bytes) {
            std::byte* p = base == nullptr ? nullptr : base + at;
            at += std::size_t(round_up(std::ptrdiff_t(n_bytes), 64));
            return p;
        };
        const auto floats = [&](float* Scratch::*member, std::size_t n) {
            std::byte* p = take(n * sizeof(float));
            if (out != nullptr) out->*member = reinterpret_cast<float*>(p);
        };
        const std::size_t rows = std::size_t(s.max_rows);
        floats(&Scratch::q, rows * std::size_t(s.q_stride));
        floats(&Scratch::q_turned, rows * std::size_t(s.q_stride));
        floats(&Scratch::scores, std::size_t(s.group_pages) * rows * kPageTokens);
        floats(&Scratch::overlay, std::size_t(s.block_rows) * kPageTokens);
        floats(&Scratch::o, rows * std::size_t(s.o_stride));
        floats(&Scratch::o_rotated, rows * std::size_t(s.o_stride));
        floats(&Scratch::m, rows);
        floats(&Scratch::l, rows);
        floats(&Scratch::rescale, rows);
        floats(&Scratch::slope, rows);
        floats(&Scratch::values, std::size_t(s.v_stride) * kPageTokens);
        floats(&Scratch::block, std::size_t(s.v_stride) * kPageTokens);
        std::byte* kernel_scratch = take(s.kernel_bytes);
        if (out != nullptr) out->kernel = kernel_scratch;
        return at;
    }
};

}  // namespace mixed_kv::attention
