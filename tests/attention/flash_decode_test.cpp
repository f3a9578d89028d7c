// FlashDecode against attention in double on the dequantised rows: every pair of key and value formats, every
// instruction set, all page states and shapes.
#include <gtest/gtest.h>

#include <string>

#include "support/attention_case.h"
#include "support/isas.h"
#include "support/random.h"

namespace mixed_kv::test {
namespace {

// "f16" (null) and every cold format.
std::vector<const ColdFormat*> all_formats() {
    std::vector<const ColdFormat*> formats{nullptr};
    for (const ColdFormat& format : cold_formats()) formats.push_back(&format);
    return formats;
}

std::string format_label(const ColdFormat* format) {
    return format == nullptr ? "f16" : std::string(format->name);
}

void expect_matches_reference(const CaseSpec& spec, const kernels::KernelSet& set,
                              std::vector<int> thread_counts) {
    AttentionCase c(spec, set);
    for (const int n_threads : thread_counts) {
        const RowErrors errors = c.check(c.run(set, n_threads));
        ASSERT_TRUE(errors.ok()) << set.name << ", " << n_threads << " threads, " << spec.name() << ": "
                                 << errors.message();
    }
}

class FlashDecodeIsa : public testing::TestWithParam<std::string> {
  protected:
    void SetUp() override {
        set_ = find_isa(GetParam());
        if (set_ == nullptr) GTEST_SKIP() << "this CPU has no " << GetParam();
    }
    const kernels::KernelSet* set_ = nullptr;
};

INSTANTIATE_TEST_SUITE_P(Isa, FlashDecodeIsa, testing::ValuesIn(isas_to_test()),
                         [](const auto& isa) { return isa.param; });

// --- pairs of formats
// -----------------------------------------------------------------------------------------

TEST_P(FlashDecodeIsa, PairsOfFormatsFewRows) {
    std::uint64_t seed = 1;
    for (const ColdFormat* k : all_formats()) {
        for (const ColdFormat* v : all_formats()) {
            SCOPED_TRACE(format_label(k) + "/" + format_label(v));
            CaseSpec spec;
            spec.k_format = k;
            spec.v_format = v;
            spec.k_mix = spec.v_mix = seed % 2 == 0 ? PageMix::all_states : PageMix::cold_overlay;
            spec.n_head = 8;
            spec.n_head_kv = 2;
            spec.n_kv = 700 + std::int64_t(seed);
            spec.n_q = 1 + std::int64_t(seed) % 3;
            spec.head_dim_k = seed % 3 == 0 ? 64 : 128;
            spec.head_dim_v = seed % 5 == 0 ? 64 : 128;
            spec.mask = seed % 2 == 0 ? MaskForm::causal : MaskForm::holes;
            spec.seed = seed++;
            expect_matches_reference(spec, *set_, {1, 3});
        }
    }
}

TEST_P(FlashDecodeIsa, PairsOfFormatsManyRows) {
    std::uint64_t seed = 100;
    for (const ColdFormat* k : all_formats()) {
        for (const ColdFormat* v : all_formats()) {
            SCOPED_TRACE(format_label(k) + "/" + format_label(v));
            CaseSpec spec;
            spec.k_format = k;
            spec.v_format = v;
            spec.k_mix = seed % 2 == 0 ? PageMix::cold_overlay : PageMix::all_states;
            spec.v_mix = PageMix::all_states;
            spec.n_head = 4;
            spec.n_head_kv = 2;
            spec.n_kv = 200 + std::int64_t(seed);
            spec.n_q = 33;
            spec.head_dim_k = spec.head_dim_v = seed % 3 == 0 ? 128 : 64;
            spec.mask = MaskForm::causal;
            spec.seed = seed++;
            expect_matches_reference(spec, *set_, {2});
        }
    }
}

// Pages of several blocks, rows at other places than their cells, cells that were never written.
TEST_P(FlashDecodeIsa, SeveralBlocksAPage) {
    std::uint64_t seed = 300;
    for (const ColdFormat* k : all_formats()) {
        for (const std::int64_t n_q : {1, 5, 40}) {
            for (const bool v_is_k : {false, true}) {
                SCOPED_TRACE(format_label(k) + (v_is_k ? " MLA" : ""));
                CaseSpec spec;
                spec.k_format = k;
                spec.v_format = all_formats()[seed % all_formats().size()];
                spec.k_mix = spec.v_mix = PageMix::blocks;
                spec.n_head = 8;
                spec.n_head_kv = v_is_k ? 1 : 2;
                spec.n_kv = 300 + std::int64_t(seed % 70);
                spec.n_q = n_q;
                spec.head_dim_k = spec.head_dim_v = seed % 3 == 0 ? 128 : 64;
                spec.v_is_k = v_is_k;
                spec.mask = seed % 4 == 0 ? MaskForm::none : MaskForm::holes;
                spec.seed = seed++;
                expect_matches_reference(spec, *set_, {1, 3});
            }
        }
    }
}

// --- the error of the output as a whole
// -----------------------------------------------------------------------------------

// Relative RMS over all rows: 3e-5 where pages are floats; where codes are multiplied as integers, 2e-4 for
// logits of standard deviation 1, 4e-4 for 3. llama.cpp's F16 attention has 6e-3.
TEST_P(FlashDecodeIsa, RelativeRmsOfTheOutput) {
    std::uint64_t seed = 700;
    for (const ColdFormat* format : all_formats()) {
        for (const float sigma : {1.0f, 3.0f}) {
            for (const int head_dim : {64, 128}) {
                CaseSpec spec;
                spec.k_format = spec.v_format = format;
                spec.k_mix = spec.v_mix = format == nullptr ? PageMix::hot : PageMix::cold_overlay;
                spec.n_head = 8;
                spec.n_head_kv = 2;
                spec.n_kv = 2048;
                spec.head_dim_k = spec.head_dim_v = head_dim;
                spec.q_sigma = sigma;
                spec.seed = seed++;
                AttentionCase c(spec, *set_);
                const RowErrors errors = c.check(c.run(*set_, 2));
                const double limit = format == nullptr ? 3e-5 : sigma == 1.0f ? 2e-4 : 4e-4;
                EXPECT_TRUE(errors.relative_rms <= limit)
                    << format_label(format) << ", sigma " << sigma << ", head_dim " << head_dim << ": "
                    << errors.relative_rms;
            }
        }
    }
}

// --- shapes
// ---------------------------------------------------------------------------------------------------

struct Shape {
    int head_dim_k, head_dim_v;
    bool v_is_k;
};
constexpr Shape kShapes[] = {{40, 40, false},   {64, 64, false},   {72, 72, false},   {80, 80, false},
                             {96, 96, false},   {128, 128, false}, {192, 192, false}, {256, 256, false},
                             {192, 128, false}, {576, 512, true},  {576, 512, false}, {33, 17, false},
                             {1, 1, false}};

TEST_P(FlashDecodeIsa, HeadShapesAndGroups) {
    std::uint64_t seed = 500;
    for (const Shape& shape : kShapes) {
        for (const int n_gqa : {1, 3, 4, 8, 16}) {
            for (const std::int64_t n_q : {1, 3, 19}) {
                Random random(seed);
                const auto formats = all_formats();
                CaseSpec spec;
                spec.n_head_kv = 1 + random.below(2);
                spec.n_head = n_gqa * spec.n_head_kv;
                spec.n_q = n_q;
                spec.n_kv = 129 + random.below(130);
                spec.head_dim_k = shape.head_dim_k;
                spec.head_dim_v = shape.head_dim_v;
                spec.v_is_k = shape.v_is_k;
                spec.k_format = formats[std::size_t(random.below(int(formats.size())))];
                spec.v_format = formats[std::size_t(random.below(int(formats.size())))];
                spec.k_mix = spec.v_mix = PageMix::all_states;
                spec.mask = random.below(2) == 0 ? MaskForm::causal : MaskForm::holes;
                spec.seed = seed++;
                expect_matches_reference(spec, *set_, {1});
            }
        }
    }
}

TEST_P(FlashDecodeIsa, CellsQueriesStreams) {
    std::uint64_t seed = 1000;
    for (const std::int64_t n_kv : {1, 2, 63, 64, 65, 127, 128, 129, 640, 1000}) {
        for (const std::int64_t n_q : {1, 3, 8, 33, 130}) {
            for (const int n_stream : {1, 2, 3}) {
                Random random(seed);
                const auto formats = all_formats();
                CaseSpec spec;
                spec.n_head = 4;
                spec.n_head_kv = 1 + random.below(2);
                spec.n_stream = n_stream;
                spec.n_q = n_q;
                spec.n_kv = n_kv;
                spec.head_dim_k = spec.head_dim_v = n_q * n_kv > 20000 ? 32 : 64;
                spec.k_format = formats[std::size_t(random.below(int(formats.size())))];
                spec.v_format = formats[std::size_t(random.below(int(formats.size())))];
                spec.k_mix = PageMix::all_states;
                spec.v_mix = random.below(3) == 0 ? PageMix::pinned : PageMix::all_states;
                constexpr MaskForm kForms[] = {MaskForm::none,      MaskForm::causal,  MaskForm::holes,
                                               MaskForm::alibi,     MaskForm::by_head, MaskForm::some_hidden,
                                               MaskForm::all_hidden};
                spec.mask = kForms[random.below(7)];
                spec.mask_streams = random.below(3) == 0 ? 1 : 0;
                spec.max_bias = spec.mask == MaskForm::alibi ? 8.0f : 0.0f;
                spec.logit_softcap = random.below(4) == 0 ? 5.0f : 0.0f;
                spec.sinks = random.below(3) == 0;
                spec.seed = seed++;
                expect_matches_reference(spec, *set_, {1, 2 + random.below(6)});
            }
        }
    }
}

TEST_P(FlashDecodeIsa, LongContext) {
    for (const char* name : {"", "q8", "q4"}) {
        CaseSpec spec;
        spec.n_kv = 33001;
        spec.n_head = 4;
        spec.n_head_kv = 1;
        spec.k_format = spec.v_format = find_cold_format(name);
        spec.k_mix = spec.v_mix = spec.k_format == nullptr ? PageMix::hot : PageMix::all_states;
        spec.mask = MaskForm::causal;
        expect_matches_reference(spec, *set_, {1, 2, 7});
    }
}

// Logits far apart, so that few cells carry the weight and every rescaling of the accumulators matters.
TEST_P(FlashDecodeIsa, LargeLogits) {
    for (const float sigma : {3.0f, 10.0f, 40.0f}) {
        for (const std::int64_t n_q : {1, 20}) {
            for (const char* name : {"", "q8", "q4"}) {
                CaseSpec spec;
                spec.n_kv = 900;
                spec.n_q = n_q;
                spec.n_head = 8;
                spec.n_head_kv = 2;
                spec.q_sigma = sigma;
                spec.k_format = spec.v_format = find_cold_format(name);
                spec.k_mix = spec.v_mix = PageMix::all_states;
                spec.mask = MaskForm::causal;
                spec.seed = std::uint64_t(sigma);
                expect_matches_reference(spec, *set_, {1, 3});
            }
        }
    }
}

}  // namespace
}  // namespace mixed_kv::test
