// The checks of the other tests can fail: each seeded fault is rejected wherever the right output is
// accepted.
#include <gtest/gtest.h>

#include "mixed_kv/isa.h"
#include "support/faults.h"

namespace mixed_kv::test {
namespace {

std::vector<CaseSpec> cases() {
    std::vector<CaseSpec> all;
    for (const std::int64_t n_q : {3, 40}) {
        for (const char* name : {"", "q8", "q4", "q2"}) {
            CaseSpec spec;
            spec.n_q = n_q;
            spec.n_kv = 6 * kPageTokens;
            spec.n_head = 8;
            spec.n_head_kv = 2;
            spec.head_dim_k = spec.head_dim_v = 128;
            spec.k_format = spec.v_format = find_cold_format(name);
            spec.k_mix = spec.v_mix = spec.k_format == nullptr ? PageMix::hot : PageMix::cold_overlay;
            spec.mask = n_q == 3 ? MaskForm::holes : MaskForm::causal;
            spec.sinks = true;
            spec.logit_softcap = 20.0f;
            all.push_back(spec);
            if (spec.k_format == nullptr) continue;
            spec.k_mix = spec.v_mix = PageMix::blocks;
            all.push_back(spec);
        }
    }
    return all;
}

TEST(SeededFaults, AreRejected) {
    const kernels::KernelSet& set = kernel_set("");
    for (const CaseSpec& spec : cases()) {
        SCOPED_TRACE(spec.name());
        AttentionCase c(spec, set);
        const RowErrors right = c.check(c.run(set));
        EXPECT_TRUE(right.ok()) << right.message();
        for (const Fault& fault : seeded_faults()) {
            if (!fault.applies(spec)) continue;
            const RowErrors wrong = c.check(fault.output(c, set));
            EXPECT_FALSE(wrong.ok()) << fault.name << " is not noticed: " << wrong.message();
        }
    }
}

TEST(SeededFaults, AllApplySomewhere) {
    for (const Fault& fault : seeded_faults()) {
        bool applies = false;
        for (const CaseSpec& spec : cases()) applies = applies || fault.applies(spec);
        EXPECT_TRUE(applies) << fault.name;
    }
}

TEST(CompareRows, RejectsWhatIsNotANumberAndWhatIsMissing) {
    const std::vector<double> expected{1.0, 2.0, 3.0, 4.0}, tolerances{0.1, 0.1};
    EXPECT_TRUE(compare_rows(std::vector<float>{1.0f, 2.05f, 3.0f, 4.0f}, expected, tolerances, 2).ok());
    const float nan = std::numeric_limits<float>::quiet_NaN();
    const RowErrors with_nan =
        compare_rows(std::vector<float>{1.0f, 2.0f, nan, 4.0f}, expected, tolerances, 2);
    EXPECT_EQ(with_nan.n_bad, 1u);
    EXPECT_EQ(with_nan.worst_row, 1u);
    EXPECT_EQ(compare_rows(std::vector<float>{1.2f, 2.0f, nan, nan}, expected, tolerances, 2).n_bad, 2u);
    EXPECT_FALSE(compare_rows(std::vector<float>{1.0f, 2.0f}, expected, tolerances, 2).ok());
    EXPECT_FALSE(compare_rows({}, {}, {}, 2).ok());
    // A row that saw nothing is exactly 0.
    EXPECT_TRUE(
        compare_rows(std::vector<float>{0.0f}, std::vector<double>{0.0}, std::vector<double>{0.0}, 1).ok());
    EXPECT_FALSE(
        compare_rows(std::vector<float>{1e-30f}, std::vector<double>{0.0}, std::vector<double>{0.0}, 1).ok());
}

}  // namespace
}  // namespace mixed_kv::test
