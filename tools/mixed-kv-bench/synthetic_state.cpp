#include "mixed-kv-bench/synthetic_state.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <vector>

namespace mixed_kv::tools {

namespace {

[[noreturn]] void fail(const std::string& what) {
    throw std::runtime_error("this model's state cannot be extended without computing it: " + what);
}

class Reader {
  public:
    explicit Reader(const std::vector<std::uint8_t>& bytes) : bytes_(bytes) {}
    template <typename T>
    T take() {
        T value;
        std::memcpy(&value, take(sizeof value), sizeof value);
        return value;
    }
    const std::uint8_t* take(std::size_t n) {
        if (n > bytes_.size() - at_) fail("it ends early");
        at_ += n;
        return bytes_.data() + at_ - n;
    }
    std::size_t n_left() const { return bytes_.size() - at_; }

  private:
    const std::vector<std::uint8_t>& bytes_;
    std::size_t at_ = 0;
};

class Writer {
  public:
    template <typename T>
    void put(T value) {
        put(reinterpret_cast<const std::uint8_t*>(&value), sizeof value);
    }
    void put(const std::uint8_t* data, std::size_t n) { bytes_.insert(bytes_.end(), data, data + n); }
    void reserve(std::size_t n) { bytes_.reserve(n); }
    std::vector<std::uint8_t>& bytes() { return bytes_; }

  private:
    std::vector<std::uint8_t> bytes_;
};

}  // namespace

// The format, as llama_kv_cache::state_write() writes it (v0.5.0), all little-endian:
//   u32 magic, i32 sequence, u32 streams (1), u32 cells,
//   per cell: i32 position, u32 sequences (1), i32 sequence,
//   u32 transposed V (0), u32 layers,
//   per layer: i32 type, u64 row bytes, K rows;  per layer with V: the same, V rows
//   (streams after the first: u32 cells (0))
void fill_by_repetition(llama_context* context, std::uint32_t depth, int n_seq) {
    std::vector<std::uint8_t> state(llama_state_seq_get_size(context, 0));
    if (state.empty() || llama_state_seq_get_data(context, state.data(), state.size(), 0) != state.size())
        fail("llama.cpp does not hand it out");
    Reader in(state);
    Writer out;
    out.put(in.take<std::uint32_t>());
    out.put(in.take<std::int32_t>());
    const auto n_streams = in.take<std::uint32_t>();
    out.put(n_streams);
    const auto n_cells = in.take<std::uint32_t>();
    if (n_cells == 0 || n_cells > depth)
        fail(fmt::format("it holds {} cells, wanted are {}", n_cells, depth));
    out.put(depth);
    for (std::uint32_t i = 0; i < n_cells; ++i) {
        const auto position = in.take<std::int32_t>();
        const auto n_sequences = in.take<std::uint32_t>();
        const auto sequence = in.take<std::int32_t>();
        if (position != std::int32_t(i) || n_sequences != 1 || sequence != 0)
            fail("its cells are not plain positions");
    }
    for (std::uint32_t i = 0; i < depth; ++i) {
        out.put(std::int32_t(i));
        out.put(std::uint32_t(1));
        out.put(std::int32_t(0));
    }
    const auto transposed = in.take<std::uint32_t>();
    if (transposed != 0) fail("V is transposed");
    out.put(transposed);
    const auto n_layers = in.take<std::uint32_t>();
    out.put(n_layers);
    out.reserve(out.bytes().size() + state.size() / n_cells * depth + state.size());
    // Layers without V of their own (MLA) make the number of tensors unknown; what is left then are streams.
    const std::size_t stream_bytes = (n_streams - 1) * sizeof(std::uint32_t);
    for (std::uint32_t tensor = 0; tensor < 2 * n_layers && in.n_left() > stream_bytes; ++tensor) {
        out.put(in.take<std::int32_t>());
        const auto row_bytes = in.take<std::uint64_t>();
        out.put(row_bytes);
        const std::uint8_t* rows = in.take(std::size_t(row_bytes) * n_cells);
        for (std::uint32_t cell = 0; cell < depth; cell += n_cells)
            out.put(rows, std::size_t(row_bytes) * std::min(n_cells, depth - cell));
    }
    for (std::uint32_t stream = 1; stream < n_streams; ++stream) {
        if (in.take<std::uint32_t>() != 0) fail("its cells are in several streams");
        out.put(std::uint32_t(0));
    }
    if (in.n_left() != 0) fail("it holds more than K and V rows");
    state = {};

    llama_memory_seq_rm(llama_get_memory(context), 0, -1, -1);
    for (int s = 0; s < n_seq; ++s) {
        const std::size_t size = out.bytes().size();
        if (llama_state_seq_set_data(context, out.bytes().data(), size, s) != size)
            fail("llama.cpp refuses the extended state");
    }
}

}  // namespace mixed_kv::tools
