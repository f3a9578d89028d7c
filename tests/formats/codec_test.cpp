// The scalar codecs, which define the formats: how far a decoded value may be from the original.

#include "formats/codec.h"

#include <algorithm>
#include <cmath>

#include "kernels/kernel_test_support.h"
#include "mixed_kv/fp16.h"

namespace mixed_kv::testing {
namespace {

// The rows as the codec sees them: in double, values rotated.
std::vector<double> in_codec_basis(KvRole role, int dim, const std::vector<std::uint16_t>& rows) {
    std::vector<double> x;
    const int size = role == KvRole::value ? hadamard_size(dim) : 1;
    for (int t = 0; t < kPageTokens; ++t) {
        for (int c = 0; c < dim; ++c) {
            double sum = 0;
            for (int j = 0; j < size; ++j) {
                const double v = fp16_to_fp32(rows[std::size_t(t) * dim + c / size * size + j]);
                sum += __builtin_popcount(unsigned(c % size) & unsigned(j)) % 2 != 0 ? -v : v;
            }
            x.push_back(sum / std::sqrt(double(size)));
        }
    }
    return x;
}

// One scale's group of values: a channel of keys, a token of values.
struct Group {
    std::vector<double> original, decoded;
};

Group group_of(const EncodedPage& page, const std::vector<double>& x, int index) {
    Group g;
    const bool is_key = page.role == KvRole::key;
    const formats::BlockReader reader = page.reader();
    for (int i = 0; i < (is_key ? kPageTokens : page.head_dim); ++i) {
        const int t = is_key ? i : index, c = is_key ? index : i;
        g.original.push_back(x[std::size_t(t) * page.head_dim + c]);
        g.decoded.push_back(reader.value(t, c));
    }
    return g;
}

// Without clipping, a value is at most half a step off, plus what rounding scale and zero point to binary16
// moves the end of the range by. The search takes other ranges only when they lower the sum of squares; so
// the RMS of every group obeys that bound, and for a single candidate every value does.
TEST(Codec, ErrorIsWithinHalfAStep) {
    std::mt19937 rng(61);
    for (const ColdFormat& format : cold_formats()) {
        for (const KvRole role : {KvRole::key, KvRole::value}) {
            for (const int dim : kHeadDims) {
                for (const RowData kind : kAllRowData) {
                    const auto rows = make_rows(kind, dim, rng);
                    const EncodedPage page(format, role, dim, rows);
                    const std::vector<double> x = in_codec_basis(role, dim, rows);
                    const int n_groups = role == KvRole::key ? dim : kPageTokens;
                    for (int i = 0; i < n_groups; ++i) {
                        const Group g = group_of(page, x, i);
                        const auto [lo, hi] = std::minmax_element(g.original.begin(), g.original.end());
                        const int max_code = (1 << format.code_bits) - 1;
                        const double step = (*hi - *lo) / max_code;
                        const double scale_rounding = std::max(step * 0x1p-11, 0x1p-25);
                        const double zero_rounding = std::max(std::abs(*lo) * 0x1p-11, 0x1p-25);
                        const double float_rounding = 16 * 0x1p-24 * (std::abs(*lo) + std::abs(*hi));
                        const double bound = 0.5 * (step + scale_rounding) + max_code * scale_rounding +
                                             zero_rounding + float_rounding;
                        double squares = 0, worst = 0;
                        for (std::size_t j = 0; j < g.original.size(); ++j) {
                            const double e = std::abs(g.decoded[j] - g.original[j]);
                            squares += e * e;
                            worst = std::max(worst, e);
                        }
                        ASSERT_TRUE(std::sqrt(squares / double(g.original.size())) <= bound)
                            << format.name << " " << to_string(kind) << " head_dim " << dim << " group " << i;
                        if (formats::clip_factors(format.code_bits).count == 1) {
                            ASSERT_TRUE(worst <= bound)
                                << worst << " > " << bound << " " << format.name << " " << to_string(kind)
                                << " head_dim " << dim << " group " << i;
                        }
                    }
                }
            }
        }
    }
}

TEST(Codec, ConstantChannelsAreExact) {
    std::mt19937 rng(62);
    for (const ColdFormat& format : cold_formats()) {
        for (const int dim : kHeadDims) {
            const auto rows = make_rows(RowData::constant, dim, rng);
            const EncodedPage page(format, KvRole::key, dim, rows);
            for (int t = 0; t < kPageTokens; ++t) {
                for (int c = 0; c < dim; ++c) {
                    ASSERT_EQ(page.reader().value(t, c), fp16_to_fp32(rows[std::size_t(t) * dim + c]));
                }
            }
        }
    }
}

// What the search is for: gaussian data in few bits.
TEST(Codec, GaussianErrorIsNearTheBestUniformQuantizer) {
    std::mt19937 rng(63);
    // Relative RMS over pages of 64 x 128. The optimal uniform quantizer for a known gaussian has 0.345 (2
    // bits), 0.194 (3), 0.107 (4), 0.059 (5); knowing each group's range does better.
    const std::pair<const char*, double> limits[] = {{"q2", 0.36}, {"q3", 0.19},  {"q4", 0.1},
                                                     {"q5", 0.05}, {"q6", 0.024}, {"q8", 0.0062}};
    for (const auto& [name, limit] : limits) {
        const ColdFormat* format = find_cold_format(name);
        ASSERT_NE(format, nullptr);
        for (const KvRole role : {KvRole::key, KvRole::value}) {
            const auto rows = make_rows(RowData::gaussian, 128, rng);
            const EncodedPage page(*format, role, 128, rows);
            const std::vector<double> x = in_codec_basis(role, 128, rows);
            double error = 0, norm = 0;
            for (int t = 0; t < kPageTokens; ++t) {
                for (int c = 0; c < 128; ++c) {
                    const double v = x[std::size_t(t) * 128 + c];
                    error += std::pow(page.reader().value(t, c) - v, 2);
                    norm += v * v;
                }
            }
            EXPECT_LE(std::sqrt(error / norm), limit) << name << (role == KvRole::key ? " key" : " value");
        }
    }
}

TEST(Codec, UncountedRowsDoNotChangeTheScales) {
    std::mt19937 rng(64);
    constexpr int dim = 64;
    auto rows = make_rows(RowData::gaussian, dim, rng);
    for (int c = 0; c < dim; ++c) {
        rows[c] = fp32_to_fp16(1000.0f);  // a sink
    }
    for (const ColdFormat& format : cold_formats()) {
        const EncodedPage with(format, KvRole::key, dim, rows),
            without(format, KvRole::key, dim, rows, ~std::uint64_t{1});
        for (int c = 0; c < dim; ++c) {
            EXPECT_GT(with.reader().scale(0, c), 20.0f * without.reader().scale(0, c));
            EXPECT_EQ(without.reader().code(0, c), (1 << format.code_bits) - 1);  // clamped
        }
    }
}

}  // namespace
}  // namespace mixed_kv::testing
