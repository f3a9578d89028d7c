// The checks of the kernel tests reject results that are wrong in small ways.

#include <cmath>
#include <cstring>
#include <functional>
#include <set>

#include "kernels/kernel_test_support.h"
#include "mixed_kv/fp16.h"

namespace mixed_kv::testing {
namespace {

struct Fault {
    const char* name;
    std::function<void(std::vector<float>&)> apply;
};

// The results that a correct kernel could give: the reference rounded to float.
std::vector<float> exact(const Reference& want) { return {want.value.begin(), want.value.end()}; }

void expect_all_rejected(const Reference& want, const std::vector<Fault>& faults) {
    ASSERT_TRUE(within_bound(want, exact(want)) && relative_rms(want, exact(want), 2e-4));
    for (const Fault& fault : faults) {
        std::vector<float> got = exact(want);
        fault.apply(got);
        EXPECT_FALSE(within_bound(want, got) && relative_rms(want, got, 2e-4)) << fault.name;
    }
}

// What can go wrong between tiers.
void expect_faults_of_tiers_rejected(const EncodedPage& page, const std::vector<float>& q,
                                     const Reference& want) {
    const formats::BlockReader reader = page.reader();
    std::vector<Fault> faults;
    std::set<int> widths;
    for (int c = 0; c < page.head_dim; ++c) widths.insert(reader.width(c));
    EXPECT_GE(widths.size(), 3u) << "a page of too few tiers";
    for (const int width : widths) {
        faults.push_back({"a tier left out", [&, width](auto& s) {
                              for (int c = 0; c < page.head_dim; ++c) {
                                  if (reader.width(c) != width) continue;
                                  for (int t = 0; t < kPageTokens; ++t) s[t] -= q[c] * reader.value(t, c);
                              }
                          }});
    }
    faults.push_back({"two quads of the query swapped", [&](auto& s) {
                          for (int c = 8; c < 12; ++c) {
                              for (int t = 0; t < kPageTokens; ++t)
                                  s[t] += (q[c + 4] - q[c]) * (reader.value(t, c) - reader.value(t, c + 4));
                          }
                      }});
    expect_all_rejected(want, faults);
}

TEST(SeededFaults, InScoresAreRejected) {
    std::mt19937 rng(51);
    for (const ColdFormat& format : cold_formats()) {
        SCOPED_TRACE(format.name);
        constexpr int dim = 128;
        const bool tiered = formats::is_tiered(true, format.code_bits, dim);
        const EncodedPage page(format, KvRole::key, dim,
                               make_rows(tiered ? RowData::graded : RowData::gaussian, dim, rng));
        std::vector<float> q(dim);
        fill_queries(q.data(), 1, dim, dim, 1.0f, rng);
        const Reference want = reference_qk(page, q.data());
        const formats::BlockReader reader = page.reader();
        if (tiered) expect_faults_of_tiers_rejected(page, q, want);
        int coded = 5, last = dim - 1;  // channels with codes
        while (reader.width(coded) == 0) ++coded;
        while (reader.width(last) == 0) --last;
        expect_all_rejected(
            want, {{"last token dropped", [](auto& s) { s[63] = 0.0f; }},
                   {"one lane NaN", [](auto& s) { s[17] = std::nanf(""); }},
                   {"two tokens swapped", [](auto& s) { std::swap(s[8], s[24]); }},
                   {"last channel ignored",
                    [&](auto& s) {
                        for (int t = 0; t < kPageTokens; ++t) s[t] -= q[last] * reader.value(t, last);
                    }},
                   {"one code off by one", [&](auto& s) { s[40] += q[coded] * reader.scale(40, coded); }},
                   {"zero points ignored",
                    [&](auto& s) {
                        for (int c = 0; c < dim; ++c) {
                            for (int t = 0; t < kPageTokens; ++t) s[t] -= q[c] * reader.offset(t, c);
                        }
                    }},
                   {"log2 instead of natural",
                    [](auto& s) {
                        for (float& x : s) x *= 1.442695f;
                    }},
                   {"scaled by 1.001",
                    [](auto& s) {
                        for (float& x : s) x *= 1.001f;
                    }},
                   {"low half of q16 lost", [&](auto& s) {
                        const QuerySteps steps = query_steps(page, q.data());
                        for (int t = 0; t < kPageTokens; ++t) {
                            double sum = 0;
                            for (int c = 0; c < dim; ++c) {
                                const int width = reader.width(c);
                                if (width == 0) continue;
                                const double step = steps.at(width) * 256.0;
                                const double qs = double(q[c]) * reader.scale(t, c);
                                sum += (std::nearbyint(qs / step) * step - qs) *
                                       (reader.code(t, c) - formats::code_centre(width));
                            }
                            s[t] += float(sum);
                        }
                    }}});
    }
}

// x rounded to bfloat16, half away from zero.
float to_8_bits(float x) {
    std::uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    bits = (bits + 0x8000u) & 0xffff0000u;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

// Sets that split floats into two bfloat16 numbers have a bound of their own, which must still tell whether a
// part was left out.
TEST(SeededFaults, InSplitScoresAreRejected) {
    std::mt19937 rng(53);
    constexpr int dim = 128;
    const auto rows = make_rows(RowData::gaussian, dim, rng);
    std::vector<float> q(dim);
    fill_queries(q.data(), 1, dim, dim, 1.0f, rng);
    Reference want;
    std::vector<float> whole(kPageTokens), no_low_k(kPageTokens), no_low_q(kPageTokens), swapped(kPageTokens);
    for (int t = 0; t < kPageTokens; ++t) {
        double value = 0, bound = 0;
        for (int c = 0; c < dim; ++c) {
            const float k = fp16_to_fp32(rows[std::size_t(t) * dim + c]);
            const float k_high = to_8_bits(k), q_high = to_8_bits(q[c]);
            const float k_low = k - k_high, q_low = to_8_bits(q[c] - q_high);
            value += double(q[c]) * k;
            bound += ((dim / 4 + 4) * 0x1p-24 + 3 * 0x1p-16) * std::abs(double(q[c]) * k);
            whole[t] += q_high * k_high + q_low * k_high + q_high * k_low;
            no_low_k[t] += q_high * k_high + q_low * k_high;
            no_low_q[t] += q_high * k_high + q_high * k_low;
            swapped[t] += q_high * k_high + q_low * k_high + q_low * k_low;
        }
        want.value.push_back(value);
        want.bound.push_back(bound);
    }
    const auto accepted = [&](const std::vector<float>& got) {
        return within_bound(want, got) && relative_rms(want, got, 3e-5);
    };
    EXPECT_TRUE(accepted(whole));
    EXPECT_FALSE(accepted(no_low_k));
    EXPECT_FALSE(accepted(no_low_q));
    EXPECT_FALSE(accepted(swapped));
}

TEST(SeededFaults, InOutputsAreRejected) {
    std::mt19937 rng(52);
    for (const ColdFormat& format : cold_formats()) {
        SCOPED_TRACE(format.name);
        constexpr int dim = 64;
        const EncodedPage page(format, KvRole::value, dim, make_rows(RowData::gaussian, dim, rng));
        std::vector<float> p(kPageTokens), o(dim, 0.5f);
        fill_weights(p.data(), 1, kPageTokens, rng);
        p[63] = 0.01f;
        const Reference want = reference_pv(page, p.data(), o.data());
        const formats::BlockReader reader = page.reader();
        expect_all_rejected(want, {{"last token dropped",
                                    [&](auto& x) {
                                        for (int c = 0; c < dim; ++c) x[c] -= p[63] * reader.value(63, c);
                                    }},
                                   {"one lane NaN", [](auto& x) { x[9] = std::nanf(""); }},
                                   {"means ignored",
                                    [&](auto& x) {
                                        for (int c = 0; c < dim; ++c) {
                                            for (float weight : p) x[c] -= weight * reader.offset(0, c);
                                        }
                                    }},
                                   {"codes not centred on the mean",
                                    [&](auto& x) {
                                        for (int c = 0; c < dim; ++c) {
                                            for (int t = 0; t < kPageTokens; ++t)
                                                x[c] -= p[t] * reader.scale(t, c) * 0.5f;
                                        }
                                    }},
                                   {"last channel not written", [&](auto& x) { x[dim - 1] = o[dim - 1]; }},
                                   {"not accumulated",
                                    [&](auto& x) {
                                        for (int c = 0; c < dim; ++c) x[c] -= o[c];
                                    }},
                                   {"channels of two vectors swapped",
                                    [](auto& x) {
                                        for (int c = 0; c < 8; ++c) std::swap(x[c], x[c + 8]);
                                    }},
                                   {"tokens of a pair swapped", [&](auto& x) {
                                        for (int c = 0; c < dim; ++c)
                                            x[c] +=
                                                (p[21] - p[20]) * (reader.value(20, c) - reader.value(21, c));
                                    }}});
    }
}

}  // namespace
}  // namespace mixed_kv::testing
