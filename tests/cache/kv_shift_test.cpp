// K-shift of one tensor: what becomes of every kind of row, and attention over the result.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <vector>

#include "cache/kv_driver.h"
#include "kernels/contract.h"
#include "mixed_kv/error.h"
#include "mixed_kv/flash_decode.h"
#include "reference/attention_reference.h"
#include "support/isas.h"

namespace mixed_kv::test {
namespace {

// RoPE by a number of positions, one kind for each distance.
struct Rope {
    Rope(HeadShape shape, const RotaryPairs& pairs, std::vector<std::uint32_t> cell_kinds,
         std::vector<std::int64_t> by)
        : kinds(std::move(cell_kinds)), distances(std::move(by)) {
        const auto n = static_cast<std::size_t>(pairs.n_pairs);
        turns.resize(distances.size() * 2 * n);
        for (std::size_t d = 0; d < distances.size(); ++d) {
            for (std::size_t i = 0; i < n; ++i) {
                const double angle = angle_of(pairs, static_cast<double>(distances[d]), i);
                turns[d * 2 * n + i] = static_cast<float>(std::cos(angle));
                turns[(d * 2 + 1) * n + i] = static_cast<float>(std::sin(angle));
            }
        }
        shift = {shape.n_head,
                 shape.head_dim,
                 pairs,
                 kinds.data(),
                 turns.data(),
                 distances.data(),
                 static_cast<int>(distances.size())};
    }
    static double angle_of(const RotaryPairs& pairs, double distance, std::size_t i) {
        return distance * std::pow(10000.0, -static_cast<double>(i) / pairs.n_pairs);
    }
    void apply(KvTensor& tensor) const {
        tensor.plan_shift(shift);
        tensor.commit_shift();
    }
    std::vector<std::uint32_t> kinds;
    std::vector<std::int64_t> distances;
    std::vector<float> turns;
    KeyShift shift;
};

// A row of [n_head][head_dim] turned by a distance, in double.
std::vector<double> turned(const HeadShape& shape, const RotaryPairs& pairs, double distance,
                           std::vector<double> row) {
    for (int head = 0; head < shape.n_head; ++head) {
        double* key = row.data() + head * shape.head_dim + pairs.first;
        for (int i = 0; i < pairs.n_pairs; ++i) {
            double& a = key[pairs.interleaved ? 2 * i : i];
            double& b = key[pairs.interleaved ? 2 * i + 1 : i + pairs.n_pairs];
            const double angle = Rope::angle_of(pairs, distance, static_cast<std::size_t>(i));
            const double c = std::cos(angle), s = std::sin(angle);
            const double x = a, y = b;
            a = c * x - s * y;
            b = s * x + c * y;
        }
    }
    return row;
}

std::vector<fp16_t> rows_of(const KvTensor& tensor) {
    std::vector<fp16_t> rows(static_cast<std::size_t>(tensor.config().n_cells * tensor.config().n_stream *
                                                      tensor.config().row_elements));
    tensor.read_bytes(0, rows.data(), rows.size() * sizeof(fp16_t));
    return rows;
}

std::vector<double> to_double(const std::vector<fp16_t>& rows, std::int64_t cell, int n) {
    std::vector<double> row;
    for (int i = 0; i < n; ++i) row.push_back(fp16_to_fp32(rows[static_cast<std::size_t>(cell * n + i)]));
    return row;
}

const RotaryPairs kHalves{0, 16, false}, kNeighbours{0, 16, true}, kPartial{8, 10, false};

std::vector<std::uint32_t> all(std::int64_t n_cells, std::uint32_t kind = 1) {
    return std::vector<std::uint32_t>(static_cast<std::size_t>(n_cells), kind);
}

}  // namespace

TEST(KvShift, BlocksStayAndRowsTurn) {
    for (const RotaryPairs& pairs : {kHalves, kNeighbours, kPartial}) {
        KvDriver cache({.n_cells = 400, .window = 32});
        cache.decode_run(0, 300);
        cache.decode({300}, {0});
        cache.decode({70}, {0});  // into a cold page
        const std::vector<fp16_t> before = rows_of(cache.tensor);
        const std::string states = cache.states();
        ASSERT_EQ(states, "cccch..");
        std::vector<std::vector<std::byte>> blocks;
        const std::size_t bytes = cache.tensor.layout().block_bytes * 2;
        for (int p = 0; p < 4; ++p)
            blocks.emplace_back(cache.page(p).first.data, cache.page(p).first.data + bytes);

        const Rope rope(cache.spec.shape, pairs, all(400), {-37});
        rope.apply(cache.tensor);
        EXPECT_EQ(cache.states(), states);
        EXPECT_EQ(cache.tensor.counters().reencodes, 0u);
        const std::vector<fp16_t> after = rows_of(cache.tensor);
        for (std::int64_t cell = 0; cell < 301; ++cell) {
            const auto expected = turned(cache.spec.shape, pairs, -37, to_double(before, cell, 64));
            const auto actual = to_double(after, cell, 64);
            // Rounded to binary16 before and after; channels that are not turned are left alone.
            for (std::size_t i = 0; i < 64; ++i)
                ASSERT_NEAR(actual[i], expected[i], 4e-3) << cell << " " << i;
            for (int i = 0; i < pairs.first; ++i)
                ASSERT_EQ(actual[static_cast<std::size_t>(i)],
                          to_double(before, cell, 64)[static_cast<std::size_t>(i)]);
        }
        for (std::size_t p = 0; p < 4; ++p) {
            EXPECT_EQ(
                std::memcmp(cache.page(static_cast<std::int64_t>(p)).first.data, blocks[p].data(), bytes), 0);
        }
        // And back: nothing is left.
        Rope(cache.spec.shape, pairs, all(400), {37}).apply(cache.tensor);
        const std::vector<fp16_t> back = rows_of(cache.tensor);
        for (std::int64_t p = 0; p < 4; ++p) {
            EXPECT_EQ(cache.page(p).shift_groups, 0u);
            for (std::int64_t t = 0; t < 64; ++t) {
                if ((cache.page(p).overlay >> t & 1) != 0) continue;
                EXPECT_EQ(std::memcmp(&back[static_cast<std::size_t>((p * 64 + t) * 64)],
                                      &before[static_cast<std::size_t>((p * 64 + t) * 64)], 128),
                          0);
            }
        }
    }
}

TEST(KvShift, QuarterTurnsAreExact) {
    KvDriver cache({.n_cells = 400, .window = 32});
    cache.decode_run(0, 300);
    cache.decode({300}, {0});
    cache.decode({70}, {0});
    std::vector<std::uint32_t> kinds = all(400, 0);
    std::fill(kinds.begin() + 30, kinds.begin() + 301, 1u);
    for (int i = 0; i < 5; ++i) cache.shift(kinds, kHalves);
    EXPECT_EQ(cache.states(), "cccch..");
    EXPECT_EQ(cache.tensor.counters().reencodes, 0u);
}

// Errors against the rows as written, turned in double.
TEST(KvShift, SixtyFourShiftsLoseNothing) {
    for (const char* format : {"q8", "q4", "q2"}) {
        KvDriver cache({.n_cells = 512, .format = format, .window = 0, .sinks = 0});
        cache.decode_run(0, 448);
        const std::vector<fp16_t> truth = cache.model.rows();  // before anything is encoded
        cache.decode({448}, {0});
        const auto error = [&](double distance) {
            double difference = 0, size = 0;
            const std::vector<fp16_t> rows = rows_of(cache.tensor);
            for (std::int64_t cell = 0; cell < 448; ++cell) {
                const auto expected = turned(cache.spec.shape, kHalves, distance, to_double(truth, cell, 64));
                const auto actual = to_double(rows, cell, 64);
                for (std::size_t i = 0; i < 64; ++i) {
                    difference += std::pow(actual[i] - expected[i], 2);
                    size += expected[i] * expected[i];
                }
            }
            return std::sqrt(difference / size);
        };
        const double first = error(0);
        const Rope rope(cache.spec.shape, kHalves, all(512), {-31});
        for (int i = 0; i < 64; ++i) rope.apply(cache.tensor);
        EXPECT_NEAR(error(-31 * 64) / first, 1.0, 0.01) << format << " " << first;
        EXPECT_EQ(cache.tensor.counters().reencodes, 0u);
    }
}

TEST(KvShift, SequencesOnSharedPages) {
    KvDriver cache({.n_cells = 256, .window = 0, .sinks = 0});
    cache.decode_run(0, 192);
    cache.decode({192}, {0});
    ASSERT_EQ(cache.states(), "ccch");
    std::vector<std::uint32_t> kinds = all(256, 0);
    const auto shift_one = [&](std::int64_t sequence, std::uint32_t kind) {
        for (std::size_t cell = 0; cell < 192; ++cell)
            kinds[cell] = static_cast<std::int64_t>(cell) % 4 == sequence ? kind : 0;
        cache.shift(kinds, kHalves);
    };
    // Four sequences shift apart and stay apart.
    for (int round = 0; round < 3; ++round) {
        for (int sequence = 0; sequence < 4; ++sequence)
            shift_one(sequence, 1 + static_cast<std::uint32_t>(sequence) % 3);
    }
    EXPECT_EQ(cache.tensor.counters().reencodes, 0u);
    EXPECT_GT(cache.page(0).shift_groups, 1u);
    // More than fits: the rows as they decode, with nothing left to apply.
    for (std::size_t cell = 0; cell < 192; ++cell) kinds[cell] = static_cast<std::uint32_t>(cell / 16 % 4);
    cache.shift(kinds, kHalves);
    EXPECT_EQ(cache.states(), "hhhh");
    EXPECT_EQ(cache.page(0).shift_groups, 0u);
    EXPECT_EQ(cache.page(0).settled, ~std::uint64_t{0});
    cache.decode({193}, {0});
    EXPECT_EQ(cache.states(), "hhhh") << "what was rounded once is not rounded again";
    EXPECT_EQ(cache.tensor.counters().reencodes, 0u);
}

// Sequences that shifted apart and come together again: seven kinds of cells, three groups.
TEST(KvShift, EqualSumsAreOneGroup) {
    KvDriver cache({.n_cells = 256, .window = 0, .sinks = 0});
    cache.decode_run(0, 192);
    cache.decode({192}, {0});
    std::vector<std::uint32_t> kinds = all(256, 0);
    for (std::uint32_t cell = 0; cell < 192; ++cell) kinds[cell] = cell % 4;
    cache.shift(kinds, kHalves);
    for (std::uint32_t cell = 0; cell < 192; ++cell) kinds[cell] = cell % 64 < 32 ? 0 : 3 - cell % 4;
    cache.shift(kinds, kHalves);
    EXPECT_EQ(cache.tensor.counters().reencodes, 0u);
    for (std::int64_t p = 0; p < 3; ++p) EXPECT_EQ(cache.page(p).shift_groups, 3u);
}

TEST(KvShift, RowsWrittenLaterHaveNothingToApply) {
    KvDriver cache({.n_cells = 512, .window = 32});
    cache.decode_run(0, 300);
    cache.decode({300}, {0});
    cache.shift(all(512), kNeighbours);
    EXPECT_EQ(cache.page(1).shift_groups, 1u);
    cache.decode_run(70, 30);    // into the block's page
    cache.decode_run(301, 100);  // they leave the window, and get a block
    cache.decode_run(401, 1);
    EXPECT_EQ(cache.tensor.counters().reencodes, 1u);
    EXPECT_EQ(cache.page(1).overlay, 0u);
    EXPECT_EQ(cache.page(1).shift_groups, 1u);
    EXPECT_EQ(cache.page(1).n_blocks, 2);
    EXPECT_EQ(cache.tensor.pages(0).shifts[1].cells[0], cache.page(1).first.cells);
    cache.shift(all(512, 3), kNeighbours);
    cache.shift(all(512, 2), kHalves);  // other pairs than those that are pending
}

TEST(KvShift, CopiesAndStates) {
    KvDriver cache({.n_cells = 256, .n_stream = 2, .window = 0, .sinks = 0});
    cache.decode_run(0, 192);
    cache.decode({192}, {0});
    cache.shift(all(512), kHalves);
    cache.tensor.copy_rows(cache.tensor, 0, 256, 192);  // whole pages: as they are
    cache.model.copy_rows(cache.model, 0, 256, 192);
    cache.expect_sound(false);
    EXPECT_EQ(cache.states(1), "ccc.");
    EXPECT_EQ(cache.page(0, 1).shift_groups, 1u);
    KvDriver other({.n_cells = 256, .n_stream = 2, .window = 0, .sinks = 0});
    other.tensor.copy_rows(cache.tensor, 0, 0, 192);  // to another tensor: up to date, as rows
    other.model.copy_rows(cache.model, 0, 0, 192);
    other.expect_sound(false);
    const std::vector<fp16_t> state = rows_of(cache.tensor);
    KvDriver restored({.n_cells = 256, .n_stream = 2, .window = 0, .sinks = 0});
    restored.write_bytes(0, state, 0, state.size() * 2);
    cache.tensor.clear();
    cache.model.clear();
    cache.expect_sound(false);
}

TEST(KvShift, RefusedMemoryChangesNothing) {
    // A page of large values may have to become hot when it is encoded anew.
    KvDriver cache({.n_cells = 256, .window = 0, .sinks = 0, .sigma = 2000.0f});
    cache.decode_run(0, 192);
    cache.decode({192}, {0});
    ASSERT_EQ(cache.states(), "ccch");
    // Six distances on each page, the second page already shifted.
    std::vector<std::uint32_t> kinds = all(256, 0);
    std::vector<std::int64_t> distances{1, 2, 3, 4, 5, 6};
    for (std::size_t cell = 0; cell < 192; ++cell) kinds[cell] = 1 + static_cast<std::uint32_t>(cell) % 6;
    const Rope rope(cache.spec.shape, kHalves, kinds, distances);
    const std::vector<fp16_t> before = rows_of(cache.tensor);
    cache.arena.trim();
    const std::size_t in_use = cache.arena.bytes_in_use();
    cache.arena.set_limit(cache.arena.bytes_resident() + 2 * 64 * 128);
    EXPECT_THROW(cache.tensor.plan_shift(rope.shift), Error);
    EXPECT_EQ(rows_of(cache.tensor), before);
    EXPECT_EQ(cache.arena.bytes_in_use(), in_use);
    cache.expect_sound(false);
    cache.arena.set_limit(SIZE_MAX);
    rope.apply(cache.tensor);
    EXPECT_EQ(cache.states(), "hhhh") << "large values wait in FP16 for the next freeze";
    const std::vector<fp16_t> after = rows_of(cache.tensor);
    for (std::int64_t cell = 0; cell < 192; ++cell) {
        const auto expected =
            turned(cache.spec.shape, kHalves, static_cast<double>(1 + cell % 6), to_double(before, cell, 64));
        const auto actual = to_double(after, cell, 64);
        for (std::size_t i = 0; i < 64; ++i) ASSERT_NEAR(actual[i], expected[i], 8.0);
    }
    cache.tensor.plan_shift(rope.shift);  // a plan that is never carried out leaves nothing behind
}

TEST(KvShift, WhatDoesNotFitIsRefused) {
    KvDriver keys({.n_cells = 256});
    const std::vector<std::uint32_t> kinds = all(256);
    EXPECT_THROW(keys.tensor.plan_shift(Rope({2, 32}, {0, 17, false}, kinds, {1}).shift), Error);
    EXPECT_THROW(keys.tensor.plan_shift(Rope({3, 32}, kHalves, kinds, {1}).shift), Error);
    KvDriver values({.role = KvRole::value, .n_cells = 256});
    EXPECT_THROW(values.tensor.plan_shift(Rope({2, 32}, kHalves, kinds, {1}).shift), Error);
}

namespace {

class ShiftedAttention : public testing::TestWithParam<std::string> {};

// Attention over shifted pages against the double reference on blocks decoded and turned in double.
TEST_P(ShiftedAttention, EqualsTheReference) {
    const kernels::KernelSet* set = find_isa(GetParam());
    if (set == nullptr) GTEST_SKIP() << "this CPU lacks " << GetParam();
    constexpr HeadShape kShape{2, 64};
    constexpr std::int64_t kCells = 700;
    constexpr int kHeads = 8;
    const RotaryPairs layouts[] = {{0, 32, false}, {0, 32, true}, {16, 20, false}};
    for (const char* format : {"q8", "q4"}) {
        for (std::size_t which = 0; which < 3; ++which) {
            for (const std::int64_t n_q : {1, 40}) {
                SCOPED_TRACE(std::string(format) + " " + std::to_string(which) + " " + std::to_string(n_q));
                PageArena arena;
                WindowTracker tracker({kCells, 1, 32, 4});
                KvTensor k({KvRole::key, kCells, 1, kShape.row_elements(), find_cold_format(format), set,
                            &arena, &tracker});
                KvTensor v({KvRole::value, kCells, 1, kShape.row_elements(), nullptr, set, &arena, &tracker});
                ASSERT_TRUE(k.set_head_shape(kShape) && v.set_head_shape(kShape));
                Random random(which + 1);
                std::uint64_t epoch = 0;
                const auto write = [&](std::int64_t first, std::int64_t n) {
                    std::vector<std::int64_t> cells(static_cast<std::size_t>(n));
                    std::iota(cells.begin(), cells.end(), first);
                    tracker.on_write(++epoch, cells);
                    for (KvTensor* tensor : {&k, &v}) {
                        std::vector<float> rows(static_cast<std::size_t>(n * 128));
                        for (float& x : rows) x = random.normal();
                        write_rows(*tensor, cells, {rows.data(), 512, false});
                    }
                    tracker.on_mask(epoch, MaskView{}, 0, 1, 1, first + n);
                };
                write(0, 640);
                write(640, 1);
                write(80, 3);  // overlay rows
                // One group on most pages, three on some, none on the last.
                std::vector<std::uint32_t> kinds(kCells, 1);
                for (std::size_t cell = 192; cell < 320; ++cell)
                    kinds[cell] = static_cast<std::uint32_t>(cell % 3);
                for (std::size_t cell = 560; cell < 700; ++cell) kinds[cell] = 0;
                for (int i = 0; i < 3; ++i) Rope(kShape, layouts[which], kinds, {-100, 57}).apply(k);

                const PageTable kt = k.pages(0), vt = v.pages(0);
                std::vector<float> q(static_cast<std::size_t>(n_q * kHeads * 64));
                for (float& x : q) x = random.normal();
                std::vector<float> out(q.size());
                AttentionArgs args;
                args.n_q = n_q;
                args.n_kv = 641;
                args.n_head = kHeads;
                args.n_head_kv = 2;
                args.head_dim_k = args.head_dim_v = 64;
                args.q = q.data();
                args.q_head_stride = args.out_head_stride = 64 * 4;
                args.q_row_stride = args.out_row_stride = kHeads * 64 * 4;
                args.k = &kt;
                args.v = &vt;
                args.kq_scale = 0.125f;
                args.out = out.data();
                MaskPages mask_pages;
                mask_pages.classify({}, 1, n_q, 641);
                FlashDecode decode(*set);
                decode.plan(args, mask_pages, 1);
                decode.run_serial();

                // Blocks in float, turned in double by what is pending.
                std::vector<double> keys(641 * 128), values(641 * 128);
                std::vector<float> block(64 * 64);
                const std::vector<fp16_t> value_rows = rows_of(v);
                for (std::int64_t cell = 0; cell < 641; ++cell) {
                    const auto row = to_double(value_rows, cell, 128);
                    std::copy(row.begin(), row.end(), values.begin() + cell * 128);
                }
                const std::vector<fp16_t> exact = rows_of(k);
                for (std::int64_t p = 0; p < 11; ++p) {
                    const Page& page = kt.pages[p];
                    for (int head = 0; head < 2; ++head) {
                        if (page.state == PageState::cold) {
                            set->formats[kt.layout.format_index].decode_key(
                                {{kt.layout.head_data(page.first, head), 0, 64, 64},
                                 block.data(),
                                 64,
                                 false});
                        }
                        for (int t = 0; t < 64 && p * 64 + t < 641; ++t) {
                            double* key = &keys[static_cast<std::size_t>((p * 64 + t) * 128 + head * 64)];
                            if (page.state != PageState::cold || (page.overlay >> t & 1) != 0) {
                                const auto row = to_double(exact, p * 64 + t, 128);
                                std::copy_n(row.begin() + head * 64, 64, key);
                                continue;
                            }
                            double distance = 0;
                            for (std::uint32_t g = 0; g < page.shift_groups; ++g) {
                                if ((kt.shifts[p].cells[g] >> t & 1) != 0)
                                    distance = static_cast<double>(kt.turns->distances[kt.shifts[p].turn[g]]);
                            }
                            EXPECT_EQ(distance,
                                      std::vector<double>(
                                          {0, -300, 171})[kinds[static_cast<std::size_t>(p * 64 + t)]]);
                            const auto row = turned({1, 64}, layouts[which], distance,
                                                    {block.begin() + t * 64, block.begin() + (t + 1) * 64});
                            std::copy(row.begin(), row.end(), key);
                        }
                    }
                }
                reference::AttentionInputs in;
                in.n_q = n_q;
                in.n_kv = 641;
                in.n_head = kHeads;
                in.n_head_kv = 2;
                in.head_dim_k = in.head_dim_v = 64;
                in.kq_scale = 0.125;
                in.q = [&](int, std::int64_t row, int head, double* to) {
                    std::copy_n(q.begin() + (row * kHeads + head) * 64, 64, to);
                };
                in.k = [&](int, std::int64_t row, int head, double* to) {
                    std::copy_n(keys.begin() + row * 128 + head * 64, 64, to);
                };
                in.v = [&](int, std::int64_t row, int head, double* to) {
                    std::copy_n(values.begin() + row * 128 + head * 64, 64, to);
                };
                const reference::AttentionOutputs expected = reference::attention(in);
                double difference = 0, size = 0;
                for (std::size_t i = 0; i < out.size(); ++i) {
                    difference += std::pow(out[i] - expected.o[i], 2);
                    size += expected.o[i] * expected.o[i];
                }
                EXPECT_LE(std::sqrt(difference / size), 2e-4);  // as without a shift
            }
        }
    }
}

INSTANTIATE_TEST_SUITE_P(Isas, ShiftedAttention, testing::ValuesIn(isas_to_test()),
                         [](const auto& isa) { return isa.param; });

}  // namespace
}  // namespace mixed_kv::test
