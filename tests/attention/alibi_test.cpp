#include <gtest/gtest.h>

#include <cmath>

#include "mixed_kv/flash_decode.h"
#include "reference/attention_reference.h"

namespace mixed_kv {
namespace {

TEST(AlibiSlope, IsOneWithoutAlibi) {
    EXPECT_EQ(alibi_slope(0.0f, 8, 3), 1.0f);
    EXPECT_EQ(reference::alibi_slope(0.0, 8, 3), 1.0);
}

TEST(AlibiSlope, FollowsThePaper) {
    for (int head = 0; head < 8; ++head) {
        EXPECT_FLOAT_EQ(alibi_slope(8.0f, 8, head), 1.0f / float(2 << head));
    }
    // 12 heads: the 8 of the power of two, then every other one of 16's.
    EXPECT_FLOAT_EQ(alibi_slope(8.0f, 12, 7), 1.0f / 256.0f);
    EXPECT_FLOAT_EQ(alibi_slope(8.0f, 12, 8), std::exp2(-0.5f));
    EXPECT_FLOAT_EQ(alibi_slope(8.0f, 12, 9), std::exp2(-1.5f));
}

TEST(AlibiSlope, AgreesWithTheReference) {
    for (const int n_head : {1, 2, 7, 12, 16, 71}) {
        for (int head = 0; head < n_head; ++head) {
            const double expected = reference::alibi_slope(8.0, n_head, head);
            EXPECT_NEAR(alibi_slope(8.0f, n_head, head), expected, 4e-6 * expected);
        }
    }
}

}  // namespace
}  // namespace mixed_kv
