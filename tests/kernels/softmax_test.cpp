// Logits and the online softmax.

#include <cmath>
#include <limits>

#include "kernels/kernel_test_support.h"
#include "mixed_kv/fp16.h"

namespace mixed_kv::testing {
namespace {

constexpr float kMasked = -std::numeric_limits<float>::infinity();
constexpr double kRounding = 0x1p-24;

class Softmax : public IsaTest {};

TEST_P(Softmax, PagesFollowOneAnother) {
    std::mt19937 rng(41);
    for (const float sigma : {0.1f, 1.0f, 8.0f, 60.0f}) {
        std::normal_distribution<float> normal(0.0f, sigma);
        for (const int n_rows : row_counts(kernels())) {
            const Guarded<float> s(std::size_t(n_rows) * kPageTokens), m(n_rows), l(n_rows), rescale(n_rows);
            for (int r = 0; r < n_rows; ++r) {
                m[r] = kMasked;
                l[r] = 0.0f;
            }
            std::vector<double> want_m(n_rows, kMasked), want_l(n_rows, 0.0);
            for (int page = 0; page < 4; ++page) {
                std::vector<float> logits;
                for (float& x : s.span()) {
                    x = (rng() & 7) == 0 ? kMasked : normal(rng);
                    logits.push_back(x);
                }
                if (page == 1) {  // a row that sees nothing of this page
                    for (int t = 0; t < kPageTokens; ++t) logits[t] = s[t] = kMasked;
                }
                kernels().softmax({s.data(), n_rows, m.data(), l.data(), rescale.data()});
                for (int r = 0; r < n_rows; ++r) {
                    const float* row = logits.data() + std::ptrdiff_t(r) * kPageTokens;
                    double largest = want_m[r];
                    for (int t = 0; t < kPageTokens; ++t) largest = std::max<double>(largest, row[t]);
                    SCOPED_TRACE("sigma " + std::to_string(sigma) + " row " + std::to_string(r) + " page " +
                                 std::to_string(page));
                    Reference want;
                    double sum = 0;
                    for (int t = 0; t < kPageTokens; ++t) {
                        // exp within 2e-7, and the rounding of its argument.
                        const double p = std::exp(row[t] - largest);
                        want.value.push_back(p);
                        want.bound.push_back(
                            p == 0 ? 0 : p * (2e-7 + kRounding * std::abs(row[t] - largest)) + 2e-38);
                        sum += p;
                    }
                    ASSERT_TRUE(within_bound(
                        want, {s.data() + std::ptrdiff_t(r) * kPageTokens, std::size_t(kPageTokens)}));
                    const double want_rescale = r == 0 && page == 1 ? 1.0 : std::exp(want_m[r] - largest);
                    ASSERT_NEAR(rescale[r], want_rescale, 1e-6 * want_rescale + 2e-38);
                    want_l[r] = want_l[r] * want_rescale + sum;
                    want_m[r] = largest;
                    ASSERT_EQ(m[r], float(largest));
                    ASSERT_NEAR(l[r], want_l[r], 3e-6 * want_l[r]);
                }
            }
        }
    }
}

// Several pages in one call: what one call after the other gives, up to rounding, with one shift for all.
TEST_P(Softmax, PagesTogether) {
    std::mt19937 rng(43);
    std::normal_distribution<float> normal(0.0f, 3.0f);
    for (int n_pages = 2; n_pages <= kernels().softmax_pages; ++n_pages) {
        for (const int n_rows : {1, 2, 3, 4, 5, 8, 16, 17}) {
            const std::ptrdiff_t stride = std::ptrdiff_t(n_rows + 1) * kPageTokens;
            const Guarded<float> s(std::size_t((n_pages - 1) * stride + n_rows * kPageTokens));
            const Guarded<float> m(n_rows), l(n_rows), rescale(n_rows);
            for (float& x : s.span()) x = (rng() & 7) == 0 ? kMasked : normal(rng);
            const auto row = [&](int page, int r) { return s.data() + page * stride + r * kPageTokens; };
            for (int r = 0; r < n_rows; ++r) {
                m[r] = r % 2 == 0 ? 1.0f : kMasked;
                l[r] = r % 2 == 0 ? 2.5f : 0.0f;
                // Row 1 sees nothing at all, row 2 nothing of the first page.
                for (int page = 0; page < n_pages; ++page) {
                    if (r == 1 || (r == 2 && page == 0)) std::fill_n(row(page, r), kPageTokens, kMasked);
                }
            }
            const std::vector<float> in(s.span().begin(), s.span().end());
            const std::vector<float> m_in(m.data(), m.data() + n_rows), l_in(l.data(), l.data() + n_rows);
            kernels().softmax({s.data(), n_rows, m.data(), l.data(), rescale.data(), n_pages, stride});
            for (int r = 0; r < n_rows; ++r) {
                SCOPED_TRACE("pages " + std::to_string(n_pages) + " row " + std::to_string(r) + " of " +
                             std::to_string(n_rows));
                double largest = m_in[r];
                const auto logit = [&](int page, int t) { return in[page * stride + r * kPageTokens + t]; };
                for (int page = 0; page < n_pages; ++page)
                    for (int t = 0; t < kPageTokens; ++t) largest = std::max<double>(largest, logit(page, t));
                double sum = l_in[r] * (m_in[r] == kMasked ? 0.0 : std::exp(m_in[r] - largest));
                for (int page = 0; page < n_pages; ++page) {
                    for (int t = 0; t < kPageTokens; ++t) {
                        const double p = logit(page, t) == kMasked ? 0 : std::exp(logit(page, t) - largest);
                        ASSERT_NEAR(row(page, r)[t], p, 2e-6 * p + 2e-38) << page << " " << t;
                        sum += p;
                    }
                }
                ASSERT_EQ(m[r], float(largest));
                ASSERT_NEAR(l[r], sum, 3e-6 * sum);
                const double want = r == 1 ? 1.0 : std::exp(m_in[r] - largest);
                ASSERT_NEAR(rescale[r], want, 1e-6 * want + 2e-38);
            }
            // Nothing between the pages' rows was touched.
            for (int page = 0; page + 1 < n_pages; ++page) {
                for (int t = 0; t < kPageTokens; ++t)
                    ASSERT_EQ(row(page, n_rows)[t], in[page * stride + n_rows * kPageTokens + t]);
            }
        }
    }
}

TEST_P(Softmax, ExponentialIsAccurateOverItsRange) {
    Guarded<float> s(kPageTokens), m(1), l(1), rescale(1);
    double worst = 0;
    for (float low = 0.0f; low > -110.0f; low -= 0.37f) {
        std::vector<float> in;
        for (int t = 0; t < kPageTokens; ++t) {
            s[t] = t == 0 ? 0.0f : low - float(t) * 0.0059f;
            in.push_back(s[t]);
        }
        m[0] = kMasked;
        l[0] = 0.0f;
        kernels().softmax({s.data(), 1, m.data(), l.data(), rescale.data()});
        for (int t = 0; t < kPageTokens; ++t) {
            const double want = std::exp(double(in[t]));
            if (want > 1.2e-38) {
                worst = std::max(worst, std::abs(s[t] - want) / want);
            } else {
                ASSERT_TRUE(s[t] >= 0.0f && s[t] < 1.3e-38f) << in[t];
            }
        }
    }
    EXPECT_LE(worst, 2e-7);
    RecordProperty("worst_relative_error", std::to_string(worst));
}

TEST_P(Softmax, NaNStaysVisible) {
    for (const float other : {0.5f, kMasked}) {
        Guarded<float> s(kPageTokens), m(1), l(1), rescale(1);
        for (float& x : s.span()) x = other;
        s[37] = std::numeric_limits<float>::quiet_NaN();
        m[0] = kMasked;
        l[0] = 0.0f;
        kernels().softmax({s.data(), 1, m.data(), l.data(), rescale.data()});
        EXPECT_TRUE(std::isnan(l[0])) << other;
    }
}

TEST_P(Softmax, LogitsFollowTheFormula) {
    std::mt19937 rng(42);
    std::normal_distribution<float> normal;
    for (const float softcap : {0.0f, 30.0f, 50.0f}) {
        for (const float slope : {1.0f, 0.25f}) {
            for (const bool masked : {false, true}) {
                for (const int n_tokens : {1, 5, 8, 63, 64}) {
                    for (const float sigma : {1e-3f, 0.3f, 3.0f}) {
                        Guarded<float> s(kPageTokens);
                        Guarded<std::uint16_t> mask(n_tokens);
                        std::vector<float> in;
                        for (float& x : s.span()) {
                            x = sigma * normal(rng);
                            in.push_back(x);
                        }
                        for (int t = 0; t < n_tokens; ++t) {
                            mask[t] = fp32_to_fp16(t % 5 == 4 ? kMasked : -std::abs(normal(rng)) * 10.0f);
                        }
                        if (masked && n_tokens > 4) {
                            s[4] =
                                std::numeric_limits<float>::quiet_NaN();  // masked columns may hold anything
                        }
                        kernels().logits(
                            {s.data(), n_tokens, masked ? mask.data() : nullptr, slope, softcap});
                        for (int t = 0; t < kPageTokens; ++t) {
                            const double bias =
                                masked && t < n_tokens ? double(slope) * fp16_to_fp32(mask[t]) : 0.0;
                            const double capped =
                                softcap != 0.0f ? softcap * std::tanh(double(in[t])) : in[t];
                            if (t >= n_tokens || bias == double(kMasked)) {
                                ASSERT_EQ(s[t], kMasked);
                                continue;
                            }
                            const double bound =
                                4e-7 * std::abs(capped) + 4 * kRounding * (std::abs(bias) + std::abs(capped));
                            ASSERT_TRUE(std::abs(s[t] - (capped + bias)) <= bound)
                                << s[t] << " for " << in[t] << ", want " << capped + bias << " within "
                                << bound;
                        }
                    }
                }
            }
        }
    }
}

TEST_P(Softmax, SoftcapReachesItsLimits) {
    Guarded<float> s(kPageTokens);
    for (int t = 0; t < kPageTokens; ++t) s[t] = float(t - 32) * 4.0f;
    s[0] = -std::numeric_limits<float>::infinity();
    s[63] = std::numeric_limits<float>::infinity();
    s[1] = std::numeric_limits<float>::quiet_NaN();
    kernels().logits({s.data(), kPageTokens, nullptr, 1.0f, 20.0f});
    EXPECT_EQ(s[0], -20.0f);
    EXPECT_EQ(s[63], 20.0f);
    EXPECT_TRUE(std::isnan(s[1]));
    EXPECT_EQ(s[32], 0.0f);
    EXPECT_EQ(s[60], 20.0f);
}

MIXED_KV_FOR_EVERY_ISA(Softmax);

}  // namespace
}  // namespace mixed_kv::testing
