// The reference itself, against answers worked out by hand.
#include "reference/attention_reference.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace mixed_kv::reference {
namespace {

// head_dim 1 everywhere: q[stream][query][head], k and v [stream][cell][KV head].
struct Scalars {
    std::vector<double> q, k, v;
    AttentionInputs inputs(int n_stream, int n_q, int n_kv, int n_head, int n_head_kv) const {
        AttentionInputs in;
        in.n_stream = n_stream;
        in.n_q = n_q;
        in.n_kv = n_kv;
        in.n_head = n_head;
        in.n_head_kv = n_head_kv;
        in.head_dim_k = in.head_dim_v = 1;
        const auto reader = [](const std::vector<double>& x, int rows, int heads) {
            return [&x, rows, heads](int stream, std::int64_t row, int head, double* out) {
                *out = x[std::size_t((stream * rows + row) * heads + head)];
            };
        };
        in.q = reader(q, n_q, n_head);
        in.k = reader(k, n_kv, n_head_kv);
        in.v = reader(v, n_kv, n_head_kv);
        return in;
    }
};

TEST(AttentionReference, WeighsByExponentials) {
    const Scalars s{{2.0}, {0.0, std::log(3.0) / 2.0}, {10.0, 20.0}};
    const AttentionOutputs out = attention(s.inputs(1, 1, 2, 1, 1));
    EXPECT_NEAR(out.o[0], (10.0 + 3.0 * 20.0) / 4.0, 1e-12);
    EXPECT_NEAR(out.lse[0], std::log(4.0), 1e-12);
    EXPECT_EQ(out.magnitudes[0].value, 20.0);
    EXPECT_NEAR(out.magnitudes[0].p_norm, std::sqrt(1.0 + 9.0) / 4.0, 1e-12);
}

TEST(AttentionReference, GroupsOfHeadsShareAKvHead) {
    const Scalars s{{1.0, 1.0, 1.0, 1.0}, {0.0, 0.0}, {5.0, 7.0}};
    const AttentionOutputs out = attention(s.inputs(1, 1, 1, 4, 2));
    EXPECT_EQ(out.o, (std::vector<double>{5.0, 5.0, 7.0, 7.0}));
}

TEST(AttentionReference, StreamsAndQueriesHaveTheirOwnRows) {
    const Scalars s{{0.0, 1.0, 0.0, 1.0}, {0.0, std::log(9.0), 0.0, std::log(9.0)}, {1.0, 2.0, 3.0, 4.0}};
    const AttentionOutputs out = attention(s.inputs(2, 2, 2, 1, 1));
    EXPECT_NEAR(out.o[0], 1.5, 1e-12);
    EXPECT_NEAR(out.o[1], 1.9, 1e-12);
    EXPECT_NEAR(out.o[2], 3.5, 1e-12);
    EXPECT_NEAR(out.o[3], 3.9, 1e-12);
}

TEST(AttentionReference, MaskHidesAndBiases) {
    const Scalars s{{1.0, 1.0}, {0.0, 0.0, 0.0}, {1.0, 2.0, 4.0}};
    AttentionInputs in = s.inputs(1, 2, 3, 1, 1);
    const fp16_t mask[] = {0x0000, kMaskedOut, 0x0000, kMaskedOut, kMaskedOut, kMaskedOut};
    in.mask.data = mask;
    in.mask.row_stride_bytes = 3 * sizeof(fp16_t);
    AttentionOutputs out = attention(in);
    EXPECT_NEAR(out.o[0], 2.5, 1e-12);
    EXPECT_EQ(out.o[1], 0.0);  // nothing visible
    EXPECT_EQ(out.lse[1], -std::numeric_limits<double>::infinity());

    const fp16_t biased[] = {fp32_to_fp16(-1.0f), fp32_to_fp16(0.0f), kMaskedOut, 0, 0, 0};
    in.mask.data = biased;
    in.max_bias = 8.0;  // slope of the only head: 2^-8
    out = attention(in);
    const double w = std::exp(-std::exp2(-8.0));
    EXPECT_NEAR(out.o[0], (w * 1.0 + 2.0) / (w + 1.0), 1e-12);
}

TEST(AttentionReference, SoftCapComesBeforeTheMask) {
    const Scalars s{{3.0}, {1.0, 0.0}, {1.0, 0.0}};
    AttentionInputs in = s.inputs(1, 1, 2, 1, 1);
    in.logit_softcap = 2.0;
    const fp16_t mask[] = {fp32_to_fp16(-1.0f), 0};
    in.mask.data = mask;
    const double w = std::exp(2.0 * std::tanh(1.5) - 1.0);
    EXPECT_NEAR(attention(in).o[0], w / (w + 1.0), 1e-12);
}

TEST(AttentionReference, SinksTakeWeightAndGiveNothing) {
    const Scalars s{{1.0}, {0.0}, {8.0}};
    AttentionInputs in = s.inputs(1, 1, 1, 1, 1);
    const float sink = std::log(3.0f);
    in.sinks = &sink;
    const AttentionOutputs out = attention(in);
    EXPECT_NEAR(out.o[0], 2.0, 1e-6);
    EXPECT_NEAR(out.lse[0], std::log(4.0), 1e-6);
}

TEST(AttentionReference, HiddenCellsMayHoldAnything) {
    const double nan = std::numeric_limits<double>::quiet_NaN();
    const Scalars s{{1.0}, {0.0, nan}, {8.0, nan}};
    AttentionInputs in = s.inputs(1, 1, 2, 1, 1);
    const fp16_t mask[] = {0, kMaskedOut};
    in.mask.data = mask;
    EXPECT_EQ(attention(in).o[0], 8.0);
}

TEST(AttentionReference, NanOfAVisibleCellShows) {
    const Scalars s{{1.0}, {0.0, 0.0}, {8.0, std::numeric_limits<double>::quiet_NaN()}};
    EXPECT_TRUE(std::isnan(attention(s.inputs(1, 1, 2, 1, 1)).o[0]));
}

}  // namespace
}  // namespace mixed_kv::reference
