#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "cache/kv_driver.h"
#include "kernels/contract.h"

// Mistakes that the cache could make, planted one at a time: the checks of kv_model.h must reject each of
// them, or they are worth nothing.
namespace mixed_kv::test {
namespace {

struct Fault {
    std::string name;
    std::function<void(KvDriver&)> plant;
    bool is_graph = false;  // the check is made as after a graph
};

Page& page(KvDriver& cache, std::int64_t index) { return const_cast<Page&>(cache.page(index)); }

// Encodes a page's rows, moved by `shift` rows, over its block.
void encode_shifted(KvDriver& cache, std::int64_t index, int shift) {
    const auto layout = cache.tensor.layout();
    const int row = layout.shape.row_elements();
    std::vector<fp16_t> rows(64 * 64);
    for (int t = 0; t < 64; ++t) {
        std::copy_n(cache.model.row(index * 64 + (t + shift) % 64), row, rows.begin() + t * row);
    }
    for (int head = 0; head < layout.shape.n_head; ++head) {
        const auto& codec = cache.tensor.config().kernels->formats[layout.format_index];
        codec.encode_key(
            {rows.data() + head * 32, row, 32, ~std::uint64_t{0},
             page(cache, index).first.data + static_cast<std::size_t>(head) * layout.block_bytes});
    }
}

const std::vector<Fault>& faults() {
    static const std::vector<Fault> table = {
        {"one bit of a cold block", [](KvDriver& c) { page(c, 1).first.data[700] ^= std::byte{0x10}; }},
        {"one bit of a hot row", [](KvDriver& c) { page(c, 5).data[130] ^= std::byte{1}; }},
        {"one bit of an overlay row", [](KvDriver& c) { page(c, 0).overlay_rows[70] ^= 1; }},
        {"a hot row twice", [](KvDriver& c) { std::memcpy(page(c, 5).data, page(c, 5).data + 64, 64); }},
        {"a block moved by one row", [](KvDriver& c) { encode_shifted(c, 1, 1); }},
        {"two heads swapped",
         [](KvDriver& c) {
             std::vector<std::byte> head(c.tensor.layout().block_bytes);
             std::byte* data = page(c, 1).first.data;
             std::memcpy(head.data(), data, head.size());
             std::memcpy(data, data + head.size(), head.size());
             std::memcpy(data + head.size(), head.data(), head.size());
         }},
        {"a sink dropped from the overlay", [](KvDriver& c) { page(c, 0).overlay &= ~std::uint64_t{8}; }},
        {"overlay rows in the wrong order", [](KvDriver& c) { page(c, 0).overlay = 0x1e; }},
        {"encoded anew without need",
         [](KvDriver& c) {
             c.model.row(2 * 64 + 5)[0] = 0x3e00;  // so that the block is another one
             encode_shifted(c, 2, 0);
         },
         true},
        {"a cell forgotten", [](KvDriver& c) { page(c, 5).written &= ~std::uint64_t{1}; }},
        {"a cell invented", [](KvDriver& c) { page(c, 7).written |= std::uint64_t{1} << 63; }},
        {"unwritten rows not zero", [](KvDriver& c) { page(c, 5).data[64 * 63] = std::byte{1}; }},
        {"two pages swapped", [](KvDriver& c) { std::swap(page(c, 1).first.data, page(c, 2).first.data); }},
        {"frozen by the graph that wrote it",
         [](KvDriver& c) {
             c.model.write_row(64, c.random_fp16(1).data());
             encode_shifted(c, 1, 0);
         },
         true},
    };
    return table;
}

std::unique_ptr<KvDriver> prepared() {
    auto cache = std::make_unique<KvDriver>(DriverSpec{.n_cells = 512, .window = 32});
    cache->decode_run(0, 340);
    cache->decode({340}, {0});
    EXPECT_EQ(cache->states(), "cccchh..");
    EXPECT_TRUE(cache->model.check(false).empty());
    return cache;
}

TEST(KvFaults, EveryPlantedFaultIsRejected) {
    for (const Fault& fault : faults()) {
        const auto cache = prepared();
        if (fault.name == "a cell invented") {
            cache->decode({448}, {0});
            EXPECT_EQ(cache->page(7).state, PageState::hot);
        }
        const Page saved[] = {cache->page(0), cache->page(1), cache->page(2), cache->page(5), cache->page(7)};
        fault.plant(*cache);
        EXPECT_FALSE(cache->model.check(fault.is_graph).empty()) << fault.name;
        const std::int64_t indices[] = {0, 1, 2, 5, 7};
        for (int i = 0; i < 5; ++i)
            page(*cache, indices[i]) = saved[i];  // so that storage is released as it was taken
    }
}

// The policy off by one: the tensor gets a tracker that is wrong in one way, the model the right one.
TEST(KvFaults, WrongWindowsAndSinksAreRejected) {
    struct Policy {
        const char* name;
        int window, sinks;
        bool accepted;
    };
    for (const Policy& policy : {Policy{"right", 64, 4, true}, Policy{"window one row short", 63, 4, false},
                                 Policy{"window one row long", 65, 4, false},
                                 Policy{"no window", 0, 4, false}, Policy{"one sink short", 64, 3, false}}) {
        const DriverSpec spec{.n_cells = 512, .window = 64, .sinks = 4};
        PageArena arena;
        WindowTracker right({512, 1, 64, 4}), given({512, 1, policy.window, policy.sinks});
        KvTensor tensor(
            {KvRole::key, 512, 1, 64, find_cold_format("q4"), &kernel_set("scalar"), &arena, &given});
        ASSERT_TRUE(tensor.set_head_shape(spec.shape));
        KvModel model(tensor, &right);
        Random random(1);
        std::size_t n_problems = 0;
        for (std::int64_t cell = 0; cell < 400; ++cell) {
            std::vector<float> row(64);
            for (float& v : row) v = random.normal();
            for (WindowTracker* tracker : {&right, &given})
                tracker->on_write(static_cast<std::uint64_t>(cell), {{cell}});
            write_rows(tensor, {cell}, {row.data(), 256, false});
            model.write_row(cell, row.data());
            n_problems += model.check(true).size();
            for (WindowTracker* tracker : {&right, &given}) {
                tracker->on_mask(static_cast<std::uint64_t>(cell), MaskView{}, 0, 1, 1, cell + 1);
            }
        }
        EXPECT_EQ(n_problems == 0, policy.accepted) << policy.name;
    }
}

// The reference of the tracker itself must notice a tracker that is off by one.
TEST(KvFaults, WrongTrackersAreRejected) {
    for (const int delta : {0, -1, 1}) {
        for (const bool is_window : {true, false}) {
            const WindowTracker::Config config{256, 1, 16, 4};
            WindowTracker::Config wrong = config;
            (is_window ? wrong.window : wrong.sinks) += delta;
            WindowTracker tracker(wrong);
            WindowReference reference(config);
            std::vector<std::int64_t> cells;
            std::vector<std::vector<std::set<std::int64_t>>> visible(1);
            std::set<std::int64_t> seen;
            for (std::int64_t i = 0; i < 100; ++i) {
                cells.push_back(i);
                seen.insert(i);
                visible[0].push_back(seen);
            }
            tracker.on_write(1, cells);
            reference.on_write(cells);
            tracker.on_mask(1, Mask(visible, 128).view(), 0, 1, 100, 128);
            reference.on_mask(visible, 0, WindowReference::Tokens::known);
            EXPECT_EQ(reference.difference(tracker).empty(), delta == 0);
        }
    }
}

}  // namespace
}  // namespace mixed_kv::test
