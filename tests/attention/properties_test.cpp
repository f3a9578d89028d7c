// Laws of attention that hold whatever the kernels do inside.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <numeric>
#include <thread>
#include <vector>

#include "mixed_kv/attention_state.h"
#include "support/attention_case.h"
#include "support/isas.h"
#include "support/random.h"

namespace mixed_kv::test {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

class FlashDecodeLaws : public testing::TestWithParam<std::string> {
  protected:
    void SetUp() override {
        set_ = find_isa(GetParam());
        if (set_ == nullptr) GTEST_SKIP() << "this CPU has no " << GetParam();
    }
    const kernels::KernelSet* set_ = nullptr;
};

INSTANTIATE_TEST_SUITE_P(Isa, FlashDecodeLaws, testing::ValuesIn(isas_to_test()),
                         [](const auto& isa) { return isa.param; });

CaseSpec spec_of(const char* format, std::int64_t n_q, std::int64_t n_kv) {
    CaseSpec spec;
    spec.n_q = n_q;
    spec.n_kv = n_kv;
    spec.n_head = 4;
    spec.n_head_kv = 2;
    spec.k_format = spec.v_format = find_cold_format(format);
    spec.k_mix = spec.v_mix = spec.k_format == nullptr ? PageMix::hot : PageMix::all_states;
    return spec;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
    return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

TEST_P(FlashDecodeLaws, SameBitsFromRunToRun) {
    for (const std::int64_t n_q : {1, 40}) {
        CaseSpec spec = spec_of("q4", n_q, 6000);
        spec.mask = MaskForm::causal;
        AttentionCase c(spec, *set_);
        for (const int n_threads : {1, 2, 3, 7}) {
            const std::vector<float> first = c.run(*set_, n_threads, Threading::one_caller);
            FlashDecode decode(*set_);
            for (int run = 0; run < 3; ++run) {
                EXPECT_TRUE(same_bits(first, c.run(decode, c.args(), n_threads, Threading::real)))
                    << n_threads << " threads, run " << run;
            }
        }
    }
}

// Any number of parts gives the same up to rounding: each passes the same check.
TEST_P(FlashDecodeLaws, SplitInvariance) {
    for (const char* format : {"", "q8", "q4"}) {
        for (const std::int64_t n_q : {1, 20}) {
            CaseSpec spec = spec_of(format, n_q, 3000);
            spec.mask = MaskForm::holes;
            spec.sinks = true;
            AttentionCase c(spec, *set_);
            for (const int n_threads : {1, 2, 3, 5, 16, 64}) {
                const RowErrors errors = c.check(c.run(*set_, n_threads));
                EXPECT_TRUE(errors.ok())
                    << n_threads << " threads, " << spec.name() << ": " << errors.message();
            }
        }
    }
}

// A FlashDecode that has served other shapes serves this one as a new one does.
TEST_P(FlashDecodeLaws, WorkspaceKeepsNothing) {
    AttentionCase small(spec_of("q8", 1, 70), *set_), large(spec_of("q4", 40, 500), *set_);
    CaseSpec empty_spec = spec_of("", 3, 64);
    empty_spec.mask = MaskForm::all_hidden;
    AttentionCase empty(empty_spec, *set_);
    FlashDecode decode(*set_);
    for (AttentionCase* c : {&large, &small, &empty, &small, &large}) {
        EXPECT_TRUE(same_bits(c->run(*set_, 3), c->run(decode, c->args(), 3, Threading::one_caller)));
    }
}

// Attentions with one scratch between them, which grows when the second is planned; threads go from one to
// the other without waiting for each other.
TEST_P(FlashDecodeLaws, ScratchCanBeShared) {
    constexpr int n_threads = 3;
    AttentionCase cases[] = {{spec_of("q4", 1, 6000), *set_}, {spec_of("q4", 40, 3000), *set_}};
    const auto scratch = std::make_shared<ThreadScratch>();
    FlashDecode decodes[] = {FlashDecode(*set_, scratch), FlashDecode(*set_, scratch)};
    std::vector<float> out[2];
    for (int i = 0; i < 2; ++i) {
        AttentionArgs a = cases[i].args();
        out[i].resize(cases[i].n_rows() * std::size_t(a.head_dim_v));
        a.out = out[i].data();
        a.out_head_stride = a.head_dim_v * std::ptrdiff_t(sizeof(float));
        a.out_row_stride = a.n_head * a.out_head_stride;
        a.out_stream_stride = a.n_q * a.out_row_stride;
        MaskPages mask_pages;
        mask_pages.classify(a.mask, a.n_stream, a.n_q, a.n_kv);
        decodes[i].plan(a, mask_pages, n_threads);
    }
    const auto on_all = [&](auto&& work) {
        std::vector<std::thread> threads;
        for (int i = 0; i < n_threads; ++i) threads.emplace_back([&work, i] { work(i); });
        for (std::thread& thread : threads) thread.join();
    };
    on_all([&](int thread) {
        for (FlashDecode& decode : decodes) decode.run(thread);
    });
    on_all([&](int thread) {
        for (FlashDecode& decode : decodes) decode.merge(thread);
    });
    for (int i = 0; i < 2; ++i) EXPECT_TRUE(same_bits(out[i], cases[i].run(*set_, n_threads))) << i;
}

// Cells in another order: hot and cold pages of equal rows, in different pages and slots.
TEST_P(FlashDecodeLaws, TokenPermutation) {
    for (const bool cold : {false, true}) {
        for (const std::int64_t n_q : {1, 20}) {
            CaseSpec spec = spec_of(cold ? "q8" : "", n_q, 500);
            std::vector<std::int64_t> order(std::size_t(spec.n_kv));
            std::iota(order.begin(), order.end(), 0);
            Random random(9);
            // Cold pages are only equal when they hold the same rows: whole pages change places then, the
            // partial last one stays.
            if (cold) {
                for (std::int64_t cell = 0; cell < 448; ++cell) order[std::size_t(cell)] = (cell + 192) % 448;
            } else {
                for (int i = int(order.size()) - 1; i > 0; --i)
                    std::swap(order[std::size_t(i)], order[std::size_t(random.below(i + 1))]);
            }
            const auto tensor = [&](KvRole role, bool permuted) {
                PageTensor::Spec t;
                t.role = role;
                t.format = spec.k_format;
                t.shape = {spec.n_head_kv, 64};
                t.n_cells = spec.n_kv;
                t.mix = cold ? PageMix::cold : PageMix::hot;
                t.value = [&order, permuted, role](int, std::int64_t cell, int head, int channel) {
                    const std::int64_t source = permuted ? order[std::size_t(cell)] : cell;
                    Random r(std::uint64_t(source * 1000 + head * 100 + channel) * 2 +
                             (role == KvRole::key ? 0 : 1));
                    return r.normal();
                };
                return std::make_unique<PageTensor>(t, *set_);
            };
            AttentionCase c(spec, tensor(KvRole::key, false), tensor(KvRole::value, false));
            AttentionCase permuted(spec, tensor(KvRole::key, true), tensor(KvRole::value, true));
            const RowErrors errors = c.check(permuted.run(*set_));
            EXPECT_TRUE(errors.ok()) << spec.name() << ": " << errors.message();
        }
    }
}

// Constant values come out as they are, whatever the weights.
TEST_P(FlashDecodeLaws, ConstantValues) {
    for (const char* format : {"", "q8", "q4", "q2"}) {
        for (const std::int64_t n_q : {1, 20}) {
            CaseSpec spec = spec_of(format, n_q, 400);
            spec.mask = MaskForm::holes;
            const auto tensor = [&](KvRole role) {
                PageTensor::Spec t;
                t.role = role;
                t.format = spec.k_format;
                t.shape = {spec.n_head_kv, 64};
                t.n_cells = spec.n_kv;
                t.mix = format[0] == '\0' ? PageMix::hot : PageMix::cold_overlay;
                t.seed = 4;
                if (role == KvRole::value) t.value = [](int, std::int64_t, int, int) { return 1.5f; };
                return std::make_unique<PageTensor>(t, *set_);
            };
            AttentionCase c(spec, tensor(KvRole::key), tensor(KvRole::value));
            // Rotation gathers a constant row in one channel; its codes and those of 0 are exact, its
            // parameters fp16.
            for (const float x : c.run(*set_, 2))
                ASSERT_NEAR(x, 1.5f, format[0] == '\0' ? 1e-5f : 2e-3f) << spec.name();
        }
    }
}

// A key that outweighs all others brings its own value.
TEST_P(FlashDecodeLaws, OneDominantKey) {
    for (const std::int64_t n_q : {1, 20}) {
        for (const std::int64_t dominant : {0, 63, 64, 200, 299}) {
            CaseSpec spec = spec_of("", n_q, 300);
            const auto tensor = [&](KvRole role) {
                PageTensor::Spec t;
                t.role = role;
                t.shape = {spec.n_head_kv, 64};
                t.n_cells = spec.n_kv;
                t.value = [dominant, role](int, std::int64_t cell, int, int channel) {
                    if (role == KvRole::value) return float(cell) + float(channel) / 64.0f;
                    return cell == dominant ? 60.0f : 0.0f;
                };
                return std::make_unique<PageTensor>(t, *set_);
            };
            AttentionCase c(spec, tensor(KvRole::key), tensor(KvRole::value));
            std::fill(c.q_data().begin(), c.q_data().end(), 1.0f);
            const std::vector<float> out = c.run(*set_, 2);
            for (std::size_t i = 0; i < out.size(); ++i) {
                ASSERT_FLOAT_EQ(out[i], fp16_to_fp32(fp32_to_fp16(float(dominant) + float(i % 64) / 64.0f)));
            }
        }
    }
}

TEST_P(FlashDecodeLaws, NothingVisibleIsZero) {
    for (const bool sinks : {false, true}) {
        for (const std::int64_t n_q : {1, 20}) {
            for (const int n_threads : {1, 4}) {
                CaseSpec spec = spec_of("q4", n_q, 1000);
                spec.mask = MaskForm::all_hidden;
                spec.sinks = sinks;
                AttentionCase c(spec, *set_);
                for (const float x : c.run(*set_, n_threads)) ASSERT_EQ(x, 0.0f);
            }
        }
    }
}

TEST_P(FlashDecodeLaws, NoCellsAtAllIsZero) {
    CaseSpec spec = spec_of("", 2, 64);
    AttentionCase c(spec, *set_);
    AttentionArgs args = c.args();
    args.n_kv = 0;
    for (const float x : c.run(*set_, args)) ASSERT_EQ(x, 0.0f);
}

// Rows that overflowed binary16 stay with the queries that see them: masked cells have no influence, whatever
// they hold.
TEST_P(FlashDecodeLaws, HiddenCellsMayHoldAnything) {
    for (const bool overlay : {false, true}) {
        for (const std::int64_t n_q : {1, 3, 20}) {
            CaseSpec spec = spec_of("q8", n_q, 256);
            spec.mask = MaskForm::causal;
            const std::int64_t bad = 70;
            const auto tensor = [&](KvRole role) {
                PageTensor::Spec t;
                t.role = role;
                t.format = spec.k_format;
                t.shape = {spec.n_head_kv, 64};
                t.n_cells = spec.n_kv;
                t.mix = overlay ? PageMix::cold_overlay : PageMix::hot;
                t.overlay_cell = overlay ? bad : -1;
                t.value = [role, bad](int, std::int64_t cell, int head, int channel) {
                    if (cell == bad) return channel % 2 == 0 ? kInfinity : std::nanf("");
                    return Random(std::uint64_t(cell * 999 + head * 77 + channel) +
                                  (role == KvRole::key ? 0 : 500))
                        .normal();
                };
                return std::make_unique<PageTensor>(t, *set_);
            };
            AttentionCase c(spec, tensor(KvRole::key), tensor(KvRole::value));
            const std::int64_t n_hidden =
                n_q == 1 ? 1 : n_q - 1;  // the last query sees the bad row, when there are others
            for (std::int64_t query = 0; query < n_hidden; ++query) {
                c.mask_data()[std::size_t(query * (spec.n_kv + kMaskGap) + bad)] = kMaskedOut;
            }
            const std::vector<float> out = c.run(*set_, 1);
            const reference::AttentionOutputs& expected = c.reference();
            for (std::size_t i = 0; i < out.size(); ++i) {
                if (i < std::size_t(n_hidden) * 4 * 64) {
                    ASSERT_NEAR(out[i], expected.o[i], 1e-3f) << i << " of " << n_q << " queries";
                } else {
                    ASSERT_FALSE(std::isfinite(out[i])) << "a visible NaN was swallowed";
                }
            }
        }
    }
}

// A page without storage is a page of zero rows, visible where the mask says so.
TEST_P(FlashDecodeLaws, EmptyPagesAreZeroRows) {
    for (const std::int64_t n_q : {1, 20}) {
        CaseSpec spec = spec_of("", n_q, 256);
        const auto tensor = [&](KvRole role, bool empty) {
            PageTensor::Spec t;
            t.role = role;
            t.shape = {spec.n_head_kv, 64};
            t.n_cells = spec.n_kv;
            t.value = [role](int, std::int64_t cell, int head, int channel) {
                if (cell / kPageTokens == 2) return 0.0f;
                return Random(std::uint64_t(cell * 999 + head * 77 + channel) +
                              (role == KvRole::key ? 0 : 500))
                    .normal();
            };
            if (empty)
                t.state = [](int, std::int64_t page) {
                    return page == 2 ? PageState::empty : PageState::hot;
                };
            return std::make_unique<PageTensor>(t, *set_);
        };
        AttentionCase stored(spec, tensor(KvRole::key, false), tensor(KvRole::value, false));
        AttentionCase empty(spec, tensor(KvRole::key, true), tensor(KvRole::value, true));
        const RowErrors errors = stored.check(empty.run(*set_));
        EXPECT_TRUE(errors.ok()) << errors.message();
        // So are cells beyond the table.
        AttentionArgs args = empty.args();
        PageTable k = args.k[0], v = args.v[0];
        k.n_pages = v.n_pages = 2;
        args.k = &k;
        args.v = &v;
        args.n_kv = 192;
        AttentionArgs shorter = stored.args();
        shorter.n_kv = 192;
        const std::vector<float> expected = stored.run(*set_, shorter), actual = empty.run(*set_, args);
        for (std::size_t i = 0; i < actual.size(); ++i) ASSERT_NEAR(actual[i], expected[i], 1e-6f);
    }
}

// --- merge_weights
// --------------------------------------------------------------------------------------------

TEST(MergeWeights, EmptyIsNeutral) {
    const MergeWeights a = merge_weights(3.0f, -kInfinity), b = merge_weights(-kInfinity, 3.0f);
    EXPECT_EQ(a.a, 1.0f);
    EXPECT_EQ(a.b, 0.0f);
    EXPECT_EQ(a.lse, 3.0f);
    EXPECT_EQ(b.a, 0.0f);
    EXPECT_EQ(b.b, 1.0f);
    EXPECT_EQ(b.lse, 3.0f);
    const MergeWeights none = merge_weights(-kInfinity, -kInfinity);
    EXPECT_EQ(none.a, 0.0f);
    EXPECT_EQ(none.b, 0.0f);
    EXPECT_EQ(none.lse, -kInfinity);
}

TEST(MergeWeights, CommutesAndAssociates) {
    Random random(5);
    for (int i = 0; i < 1000; ++i) {
        const float a = 20.0f * random.normal(), b = 20.0f * random.normal(), c = 20.0f * random.normal();
        const MergeWeights ab = merge_weights(a, b), ba = merge_weights(b, a), bc = merge_weights(b, c);
        EXPECT_EQ(ab.a, ba.b);
        EXPECT_EQ(ab.lse, ba.lse);
        const MergeWeights left = merge_weights(ab.lse, c), right = merge_weights(a, bc.lse);
        const float scale = 1e-6f * (1.0f + std::fabs(left.lse));
        EXPECT_NEAR(left.lse, right.lse, 4.0f * scale);
        EXPECT_NEAR(left.a * ab.a, right.a, 8.0f * scale);
        EXPECT_NEAR(left.a * ab.b, right.b * bc.a, 8.0f * scale);
        EXPECT_NEAR(left.b, right.b * bc.b, 8.0f * scale);
    }
}

TEST(MergeWeights, IsTheStateOfTheUnion) {
    const MergeWeights w = merge_weights(std::log(3.0f), std::log(5.0f));
    EXPECT_FLOAT_EQ(w.a, 3.0f / 8.0f);
    EXPECT_FLOAT_EQ(w.b, 5.0f / 8.0f);
    EXPECT_FLOAT_EQ(w.lse, std::log(8.0f));
}

}  // namespace
}  // namespace mixed_kv::test
