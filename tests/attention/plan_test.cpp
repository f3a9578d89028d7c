// The cut into work items: complete, balanced, and no finer than needed.
#include "attention/plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>

#include "kernels/contract.h"
#include "mixed_kv/isa.h"
#include "support/attention_case.h"

namespace mixed_kv::test {
namespace {

using attention::Item;
using attention::Plan;
using attention::Tile;

Plan plan_of(AttentionCase& c, int n_threads) {
    const AttentionArgs args = c.args();
    MaskPages mask_pages;
    mask_pages.classify(args.mask, args.n_stream, args.n_q, args.n_kv);
    Plan plan;
    plan.build(args, mask_pages, n_threads);
    return plan;
}

CaseSpec decode_case(std::int64_t n_kv) {
    CaseSpec spec;
    spec.n_kv = n_kv;
    spec.n_head = 8;
    spec.n_head_kv = 2;
    return spec;
}

TEST(Plan, CoversEveryRowAndPageOnce) {
    std::uint64_t seed = 1;
    for (const std::int64_t n_q : {1, 5, 17, 100}) {
        for (const int n_gqa : {1, 3, 16, 40, 130}) {
            for (const int n_threads : {1, 2, 7}) {
                CaseSpec spec = decode_case(1500);
                spec.n_q = n_q;
                spec.n_head_kv = 2;
                spec.n_head = 2 * n_gqa;
                spec.n_stream = 2;
                spec.head_dim_k = spec.head_dim_v = 32;
                spec.mask = seed % 3 == 0   ? MaskForm::none
                            : seed % 3 == 1 ? MaskForm::causal
                                            : MaskForm::by_head;
                spec.seed = seed++;
                AttentionCase c(spec, kernel_set("scalar"));
                const Plan plan = plan_of(c, n_threads);

                std::map<std::vector<std::int64_t>, int> rows;  // (stream, query, head)
                for (const Tile& tile : plan.tiles()) {
                    EXPECT_LE(tile.n_rows(), plan.max_rows());
                    EXPECT_LE(plan.max_rows(), 128);
                    for (int row = 0; row < tile.n_rows(); ++row) {
                        const int head = tile.head0 + row % tile.n_head;
                        EXPECT_EQ(head / n_gqa, tile.head_kv);
                        ++rows[{tile.stream, tile.q0 + row / tile.n_head, head}];
                    }
                }
                EXPECT_EQ(rows.size(), c.n_rows());
                EXPECT_TRUE(
                    std::all_of(rows.begin(), rows.end(), [](const auto& r) { return r.second == 1; }));

                std::vector<std::vector<Item>> parts(plan.tiles().size());
                for (const Item& item : plan.items()) parts[std::size_t(item.tile)].push_back(item);
                for (std::size_t t = 0; t < parts.size(); ++t) {
                    EXPECT_EQ(int(parts[t].size()), plan.tiles()[t].n_parts);
                    std::int64_t page = 0;
                    for (std::size_t i = 0; i < parts[t].size(); ++i) {
                        EXPECT_EQ(parts[t][i].part, int(i));
                        EXPECT_EQ(parts[t][i].page_begin, page);
                        page = parts[t][i].page_end;
                    }
                    EXPECT_EQ(page, plan.n_pages());
                }
            }
        }
    }
}

TEST(Plan, OneThreadIsNotCut) {
    AttentionCase c(decode_case(20000), kernel_set("scalar"));
    const Plan plan = plan_of(c, 1);
    EXPECT_EQ(plan.items().size(), 2u);  // KV heads
    EXPECT_TRUE(plan.merge_jobs().empty());
}

TEST(Plan, ShortContextsAreNotCut) {
    AttentionCase c(decode_case(256), kernel_set("scalar"));
    EXPECT_TRUE(plan_of(c, 8).merge_jobs().empty());
}

// One KV head, more threads than heads: each thread gets its share, hot and cold pages by their bytes.
TEST(Plan, PartsHaveEqualCosts) {
    for (const int n_threads : {2, 3, 7, 16}) {
        CaseSpec spec = decode_case(33001);
        spec.n_head_kv = 1;
        spec.n_head = 4;
        spec.k_format = spec.v_format = find_cold_format("q4");
        auto half_cold = [&](KvRole role) {
            PageTensor::Spec t;
            t.role = role;
            t.format = spec.k_format;
            t.shape = {1, 64};
            t.n_cells = spec.n_kv;
            t.value = [](int, std::int64_t, int, int channel) { return float(channel); };
            t.state = [](int, std::int64_t page) { return page < 256 ? PageState::cold : PageState::hot; };
            return std::make_unique<PageTensor>(t, kernel_set("scalar"));
        };
        AttentionCase c(spec, half_cold(KvRole::key), half_cold(KvRole::value));
        const Plan plan = plan_of(c, n_threads);
        ASSERT_GE(int(plan.items().size()), 2 * n_threads);
        const auto bytes = [&](const Item& item) {
            std::int64_t sum = 0;
            for (std::int64_t page = item.page_begin; page < item.page_end; ++page) {
                sum += page < 256 ? 1 : 3;  // arithmetic counts beside bytes, which differ by 1 to 3.5
            }
            return sum;
        };
        std::int64_t least = INT64_MAX, most = 0;
        for (const Item& item : plan.items()) {
            least = std::min(least, bytes(item));
            most = std::max(most, bytes(item));
        }
        EXPECT_LE(most, 2 * least + 3);
    }
}

TEST(Plan, HiddenPagesCostNothing) {
    CaseSpec spec = decode_case(20000);
    spec.n_head_kv = 1;
    spec.mask = MaskForm::all_hidden;
    AttentionCase c(spec, kernel_set("scalar"));
    const Plan plan = plan_of(c, 4);
    EXPECT_EQ(plan.items().size(), 1u);
}

}  // namespace
}  // namespace mixed_kv::test
