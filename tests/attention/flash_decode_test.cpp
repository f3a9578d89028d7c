#include <gtest/gtest.h>

#include "mixed_kv/isa.h"
#include "support/attention_case.h"

namespace mixed_kv::test {
namespace {

TEST(FlashDecode, Smoke) {
    for (const bool decode : {true, false}) {
        for (PageMix mix : {PageMix::hot, PageMix::pinned, PageMix::cold, PageMix::cold_overlay, PageMix::all_states}) {
            for (const char* format : {"q8", "q4", "q2"}) {
                CaseSpec spec;
                spec.n_kv = 333;
                spec.n_q = decode ? 3 : 50;
                spec.n_head = 8;
                spec.n_head_kv = 2;
                spec.head_dim_k = spec.head_dim_v = 128;
                spec.k_format = spec.v_format = find_cold_format(format);
                spec.k_mix = spec.v_mix = mix;
                spec.mask = MaskForm::causal;
                AttentionCase c(spec, kernel_set("scalar"));
                for (int n_threads : {1, 3}) {
                    const RowErrors errors = c.check(c.run(kernel_set("scalar"), n_threads));
                    EXPECT_TRUE(errors.ok()) << spec.name() << ": " << errors.message();
                    printf("%s %s\n", spec.name().c_str(), errors.message().c_str());
                }
            }
        }
    }
}

}  // namespace
}  // namespace mixed_kv::test
