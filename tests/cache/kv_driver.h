#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <set>
#include <string>
#include <vector>

#include "cache/kv_model.h"
#include "cache/window_reference.h"
#include "mixed_kv/isa.h"
#include "mixed_kv/page_arena.h"
#include "support/random.h"

namespace mixed_kv::test {

struct DriverSpec {
    KvRole role = KvRole::key;
    std::int64_t n_cells = 512;
    int n_stream = 1;
    HeadShape shape{2, 32};
    std::string format = "q4";
    int window = 64;
    int sinks = 4;
    std::uint64_t seed = 1;
    bool shape_known = true;
    std::vector<std::string> ladder = {};  // then format is its first
    float sigma = 1.0f;                    // standard deviation of the rows that decode() writes
};

inline std::vector<const ColdFormat*> formats_of(const std::vector<std::string>& names) {
    std::vector<const ColdFormat*> formats;
    for (const std::string& name : names) formats.push_back(find_cold_format(name));
    return formats;
}

// One tensor with everything around it, its model, and sequences as a host would keep them: which cells a
// sequence has is known here only, the tensor and the tracker see writes and masks. Single stream unless
// cells say otherwise.
struct KvDriver {
    explicit KvDriver(const DriverSpec& s)
        : spec(s),
          tracker({s.n_cells, s.n_stream, s.window, s.sinks}),
          tensor({s.role,
                  s.n_cells,
                  s.n_stream,
                  s.shape.row_elements(),
                  s.format == "f16" ? nullptr : find_cold_format(s.format),
                  &kernel_set("scalar"),
                  &arena,
                  &tracker,
                  {},
                  formats_of(s.ladder)}),
          model(tensor, &tracker),
          random(s.seed) {
        if (s.shape_known) {
            EXPECT_TRUE(tensor.set_head_shape(s.shape));
        }
    }

    std::vector<float> random_rows(std::size_t n, float scale = 1.0f) {
        std::vector<float> rows(n * static_cast<std::size_t>(spec.shape.row_elements()));
        for (float& v : rows) v = random.normal() * scale;
        return rows;
    }
    // One graph: row i goes to cells[i] and belongs to sequence[i].
    void decode(const std::vector<std::int64_t>& cells, const std::vector<int>& sequence) {
        decode_rows(cells, sequence, random_rows(cells.size(), spec.sigma));
    }
    void decode_rows(const std::vector<std::int64_t>& cells, const std::vector<int>& sequence,
                     const std::vector<float>& rows) {
        tracker.on_write(++epoch, cells);
        write_rows(tensor, cells, {rows.data(), spec.shape.row_elements() * 4, false});
        for (std::size_t i = 0; i < cells.size(); ++i) model.write_row(cells[i], &rows[i * row_elements()]);
        expect_sound(true);
        std::vector<std::vector<std::set<std::int64_t>>> visible(1);
        for (std::size_t i = 0; i < cells.size(); ++i) {
            for (auto& other : sequences) other.erase(cells[i]);
            auto& own = sequences[static_cast<std::size_t>(sequence[i])];
            own.insert(cells[i]);
            visible[0].push_back(own);
        }
        const Mask mask(visible, spec.n_cells);
        tracker.on_mask(epoch, mask.view(), 0, 1, static_cast<std::int64_t>(cells.size()), spec.n_cells);
    }
    void decode_run(std::int64_t first, std::int64_t n, int sequence = 0) {
        std::vector<std::int64_t> cells(static_cast<std::size_t>(n));
        std::iota(cells.begin(), cells.end(), first);
        decode(cells, std::vector<int>(cells.size(), sequence));
    }
    void decode_one_by_one(std::int64_t first, std::int64_t n, int sequence = 0) {
        for (std::int64_t i = 0; i < n; ++i) decode({first + i}, {sequence});
    }
    void write_bytes(std::size_t offset, const std::vector<fp16_t>& data, std::size_t at, std::size_t size) {
        const auto* bytes = reinterpret_cast<const std::byte*>(data.data()) + at;
        tensor.write_bytes(offset, bytes, size);
        model.write_bytes(offset, bytes, size);
        expect_sound(false);
    }
    std::vector<fp16_t> random_fp16(std::size_t n_rows) {
        std::vector<fp16_t> values;
        for (const float v : random_rows(n_rows)) values.push_back(fp32_to_fp16(v));
        return values;
    }
    // A K-shift by quarter turns: kinds[cell] of them, one per position.
    void shift(const std::vector<std::uint32_t>& kinds, const RotaryPairs& pairs) {
        const QuarterTurns quarters(spec.shape, pairs, kinds);
        model.shift(quarters.shift);
        tensor.plan_shift(quarters.shift);
        tensor.commit_shift();
        expect_sound(false);
    }
    void expect_sound(bool is_graph) {
        const auto problems = model.check(is_graph);
        EXPECT_TRUE(problems.empty()) << problems.size() << " problems, the first: " << problems.front();
        EXPECT_EQ(arena.bytes_in_use(), model.live_bytes());
    }
    const Page& page(std::int64_t index, int stream = 0) const { return tensor.pages(stream).pages[index]; }
    std::string states(int stream = 0) const {
        std::string text;
        const PageTable table = tensor.pages(stream);
        for (std::int64_t i = 0; i < table.n_pages; ++i)
            text += ".hcp"[static_cast<int>(table.pages[i].state)];
        return text;
    }
    std::size_t row_elements() const { return static_cast<std::size_t>(spec.shape.row_elements()); }
    std::size_t row_bytes() const { return row_elements() * sizeof(fp16_t); }

    DriverSpec spec;
    PageArena arena;
    WindowTracker tracker;
    KvTensor tensor;
    KvModel model;
    Random random;
    std::uint64_t epoch = 0;
    std::vector<std::set<std::int64_t>> sequences{8};
};

}  // namespace mixed_kv::test
