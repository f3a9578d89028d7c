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

// How far each value of every group may be off without clipping: half a step, plus what rounding to binary16
// moves the end of the range by. Offsets of values take the mean of a channel's errors away, which is at most
// the mean of their bounds.
std::vector<double> bounds_of(const EncodedPage& page, const std::vector<double>& x) {
    const bool is_key = page.role == KvRole::key;
    const int dim = page.head_dim, max_code = (1 << page.format->code_bits) - 1;
    std::vector<double> means(dim, 0.0), bounds;
    for (std::size_t i = 0; i < x.size() && !is_key; ++i) means[i % dim] += x[i] / kPageTokens;
    double sum = 0, largest_of_all = 0;
    for (int i = 0; i < (is_key ? dim : kPageTokens); ++i) {
        double lo = INFINITY, hi = -INFINITY, largest = 0;
        for (int j = 0; j < (is_key ? kPageTokens : dim); ++j) {
            const int t = is_key ? j : i, c = is_key ? i : j;
            const double value = x[std::size_t(t) * dim + c];
            lo = std::min(lo, value - means[c]);
            hi = std::max(hi, value - means[c]);
            largest = std::max(largest, std::abs(value) + std::abs(means[c]));
        }
        largest_of_all = std::max(largest_of_all, largest);
        // Means are rounded before the rows are taken about them.
        const double range = is_key ? hi - lo : 2 * (std::max(hi, -lo) + 0x1p-11 * largest);
        const double step = range / max_code * (is_key ? 1.0 : 1.0 + 0x1p-4);  // coarse_scale()
        const double scale_rounding = std::max(step * 0x1p-11, 0x1p-25);
        const double zero_rounding = std::max(largest * 0x1p-11, 0x1p-25);
        const double float_rounding = 32 * 0x1p-24 * largest;
        bounds.push_back(0.5 * (step + scale_rounding) + max_code * scale_rounding + zero_rounding +
                         float_rounding);
        sum += bounds.back();
    }
    for (double& bound : bounds) {
        if (!is_key) bound += sum / kPageTokens + 32 * 0x1p-24 * largest_of_all;
    }
    return bounds;
}

// The search takes other ranges only when they lower the sum of squares; so the RMS of every group obeys the
// bound, and for a single candidate every value does.
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
                    const std::vector<double> bounds = bounds_of(page, x);
                    for (int i = 0; i < n_groups; ++i) {
                        const Group g = group_of(page, x, i);
                        const double bound = bounds[i];
                        double squares = 0, worst = 0;
                        for (std::size_t j = 0; j < g.original.size(); ++j) {
                            const double e = std::abs(g.decoded[j] - g.original[j]);
                            squares += e * e;
                            worst = std::max(worst, e);
                        }
                        ASSERT_TRUE(std::sqrt(squares / double(g.original.size())) <= bound)
                            << format.name << " " << to_string(kind) << " head_dim " << dim << " group " << i;
                        if (formats::clip_factors(role == KvRole::key, format.code_bits).count == 1) {
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
    // bits), 0.194 (3), 0.107 (4), 0.059 (5); knowing each group's range does better, for values only its
    // larger side.
    struct Limit {
        const char* name;
        double key, value;
    };
    const Limit limits[] = {{"q2", 0.43, 0.36},  {"q3", 0.19, 0.2},    {"q4", 0.1, 0.105},
                            {"q5", 0.05, 0.054}, {"q6", 0.024, 0.027}, {"q8", 0.0062, 0.0067}};
    for (const auto& [name, key_limit, value_limit] : limits) {
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
            EXPECT_LE(std::sqrt(error / norm), role == KvRole::key ? key_limit : value_limit)
                << name << (role == KvRole::key ? " key" : " value");
        }
    }
}

// What all rows have in common costs values no code: only its rounding to binary16 is left to encode.
TEST(Codec, TheMeanOfValuesIsFree) {
    std::mt19937 rng(65);
    for (const ColdFormat& format : cold_formats()) {
        for (const int dim : kHeadDims) {
            auto rows = make_rows(RowData::gaussian, dim, rng);
            for (std::size_t i = dim; i < rows.size(); ++i) rows[i] = rows[i - dim];  // all like the first
            const EncodedPage page(format, KvRole::value, dim, rows);
            const std::vector<double> x = in_codec_basis(KvRole::value, dim, rows);
            double largest = 0;
            for (const double v : x) largest = std::max(largest, std::abs(v));
            for (std::size_t i = 0; i < x.size(); ++i) {
                const double got = page.reader().value(int(i) / dim, int(i) % dim);
                ASSERT_NEAR(got, x[i], 0x1p-11 * largest) << format.name << " " << dim;
            }
        }
    }
}

// Rows as the cache keeps them between two encodings: decoded, in their own basis, as binary16.
std::vector<std::uint16_t> decoded_rows(const EncodedPage& page) {
    std::vector<std::uint16_t> rows;
    std::vector<float> row(page.head_dim);
    for (int t = 0; t < kPageTokens; ++t) {
        for (int c = 0; c < page.head_dim; ++c) row[c] = page.reader().value(t, c);
        if (page.role == KvRole::value) {
            formats::rotate(row.data(), page.head_dim, hadamard_size(page.head_dim));
        }
        for (const float x : row) rows.push_back(fp32_to_fp16(x));
    }
    return rows;
}

// RMS over a page of the differences between two sets of rows.
double rms(const std::vector<std::uint16_t>& a, const std::vector<std::uint16_t>& b) {
    double sum = 0;
    for (std::size_t i = 0; i < a.size(); ++i)
        sum += std::pow(double(fp16_to_fp32(a[i])) - fp16_to_fp32(b[i]), 2);
    return std::sqrt(sum / double(a.size()));
}

// Every cycle finds the same codes again, or nearly: the decoded rows of keys span their range, and those of
// values have the means and, on a coarse grid, the scales that they had.
TEST(Codec, TenCyclesOfDecodingAndEncodingDriftLittle) {
    std::mt19937 rng(66);
    for (const ColdFormat& format : cold_formats()) {
        for (const KvRole role : {KvRole::key, KvRole::value}) {
            for (const int dim : kHeadDims) {
                for (const RowData kind : {RowData::gaussian, RowData::outlier_channels}) {
                    const auto original = make_rows(kind, dim, rng);
                    auto rows = decoded_rows(EncodedPage(format, role, dim, original));
                    const auto once = rows;
                    for (int cycle = 1; cycle < 10; ++cycle) {
                        rows = decoded_rows(EncodedPage(format, role, dim, rows));
                    }
                    const double error = rms(once, original), later = rms(rows, original);
                    EXPECT_LE(later, 1.25 * error)
                        << format.name << " " << to_string(kind)
                        << (role == KvRole::key ? " key " : " value ") << dim << ": " << error;
                }
            }
        }
    }
}

// A row of a cold page is written: the page is encoded anew from decoded rows. The others move by at most
// half of the new step (in the RMS of a group; each value where nothing is clipped).
TEST(Codec, ANeighboursRewriteMovesOthersByHalfAStep) {
    std::mt19937 rng(67);
    for (const ColdFormat& format : cold_formats()) {
        for (const KvRole role : {KvRole::key, KvRole::value}) {
            for (const int dim : kHeadDims) {
                auto rows = decoded_rows(
                    EncodedPage(format, role, dim, make_rows(RowData::outlier_channels, dim, rng)));
                for (int c = 0; c < dim; ++c) rows[7 * dim + c] = fp32_to_fp16(c % 2 != 0 ? 3.0f : -200.0f);
                const EncodedPage page(format, role, dim, rows);
                const std::vector<double> x = in_codec_basis(role, dim, rows);
                const std::vector<double> bounds = bounds_of(page, x);
                for (int i = 0; i < (role == KvRole::key ? dim : kPageTokens); ++i) {
                    if (role == KvRole::value && i == 7) continue;
                    const Group g = group_of(page, x, i);
                    const double bound = bounds[i];
                    double squares = 0, worst = 0;
                    for (std::size_t j = 0; j < g.original.size(); ++j) {
                        const double e = std::abs(g.decoded[j] - g.original[j]);
                        squares += e * e;
                        worst = std::max(worst, e);
                    }
                    ASSERT_LE(std::sqrt(squares / double(g.original.size())), bound) << format.name << dim;
                    if (formats::clip_factors(role == KvRole::key, format.code_bits).count == 1) {
                        ASSERT_LE(worst, bound) << format.name << " head_dim " << dim << " group " << i;
                    }
                }
            }
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
