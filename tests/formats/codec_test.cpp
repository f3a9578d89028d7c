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

// How far each value of every group may be off: `rms` over the group always, since the search takes another
// range only if it lowers the sum of squares; `each` if there is a bound on single values.
struct Bound {
    double rms, each;
};

formats::ScaleForm scale_form(const EncodedPage& page) {
    return formats::is_narrow(page.format->code_bits) ? formats::ScaleForm::byte : formats::ScaleForm::half;
}

// What rounding a scale up, or to binary16, adds to it, and the smallest scale there is but 0.
double growth_of_scale(const EncodedPage& page) {
    if (scale_form(page) == formats::ScaleForm::byte) return 0x1p-3;  // byte_scale()
    return page.role == KvRole::value ? 0x1p-4 + 0x1p-11 : 0x1p-11;   // coarse_scale()
}
double smallest_scale(const EncodedPage& page) {
    return scale_form(page) == formats::ScaleForm::byte ? 0x1p-17 : 0x1p-24;
}

// A channel of keys: half a step, what rounding the zero point moves, and of a range that did not grow with
// its scale what rounding that loses at its upper end. Without codes, the deviation from the mean, at most
// half a range.
Bound key_bound(const EncodedPage& page, const std::vector<double>& x, int c) {
    double lo = INFINITY, hi = -INFINITY, largest = 0;
    for (int t = 0; t < kPageTokens; ++t) {
        const double value = x[std::size_t(t) * page.head_dim + c];
        lo = std::min(lo, value);
        hi = std::max(hi, value);
        largest = std::max(largest, std::abs(value));
    }
    const double zero_rounding = std::max(2 * largest * 0x1p-11, 0x1p-25),
                 float_rounding = 32 * 0x1p-24 * largest;
    const int width = page.reader().width(c);
    if (width == 0) {
        return {(hi - lo) / 2 + zero_rounding + float_rounding, hi - lo + zero_rounding + float_rounding};
    }
    const int max_code = (1 << width) - 1;
    const double exact = (hi - lo) / max_code;
    const double step = std::max(exact * (1 + growth_of_scale(page)), hi > lo ? smallest_scale(page) : 0.0);
    const bool grows = scale_form(page) == formats::ScaleForm::byte;
    const double lost = grows ? 0.0 : max_code * std::max(exact * 0x1p-11, 0x1p-25);
    const double bound = 0.5 * step + lost + zero_rounding + float_rounding;
    const formats::ClipFactors clips = formats::clip_factors(true, width, scale_form(page));
    const double smallest = *std::min_element(clips.factor, clips.factor + clips.count);
    return {bound, bound + (1 - smallest) * (hi - lo) / 2};
}

// A token of values, in the same way; means are rounded before the rows are taken about them. Offsets take
// the mean of a channel's errors away, which is at most the mean of all tokens' bounds.
std::vector<Bound> value_bounds(const EncodedPage& page, const std::vector<double>& x) {
    const int dim = page.head_dim, max_code = (1 << page.format->code_bits) - 1;
    std::vector<double> means(dim, 0.0);
    std::vector<Bound> bounds;
    for (std::size_t i = 0; i < x.size(); ++i) means[i % dim] += x[i] / kPageTokens;
    double sum = 0, largest_of_all = 0;
    for (int t = 0; t < kPageTokens; ++t) {
        double reach = 0, largest = 0;
        for (int c = 0; c < dim; ++c) {
            const double value = x[std::size_t(t) * dim + c];
            reach = std::max(reach, std::abs(value - means[c]));
            largest = std::max(largest, std::abs(value) + std::abs(means[c]));
        }
        largest_of_all = std::max(largest_of_all, largest);
        const double range = 2 * (reach + 0x1p-11 * largest);
        const double exact = range / max_code;
        const double step = std::max(exact * (1 + growth_of_scale(page)), smallest_scale(page));
        const double lost = max_code * std::max(exact * 0x1p-11, 0x1p-25);
        const double mean_rounding = std::max(largest * 0x1p-11, 0x1p-25);
        const double bound = 0.5 * step + lost + mean_rounding + 32 * 0x1p-24 * largest;
        const bool one = formats::clip_factors(false, page.format->code_bits, scale_form(page)).count == 1;
        bounds.push_back({bound, one ? bound : double(INFINITY)});
        sum += bound;
    }
    for (Bound& bound : bounds) {
        const double add = sum / kPageTokens + 32 * 0x1p-24 * largest_of_all;
        bound = {bound.rms + add, bound.each + add};
    }
    return bounds;
}

std::vector<Bound> bounds_of(const EncodedPage& page, const std::vector<double>& x) {
    if (page.role == KvRole::value) return value_bounds(page, x);
    std::vector<Bound> bounds;
    for (int c = 0; c < page.head_dim; ++c) bounds.push_back(key_bound(page, x, c));
    return bounds;
}

void expect_within(const Bound& bound, const Group& g, const std::string& what) {
    double squares = 0, worst = 0;
    for (std::size_t j = 0; j < g.original.size(); ++j) {
        const double e = std::abs(g.decoded[j] - g.original[j]);
        squares += e * e;
        worst = std::max(worst, e);
    }
    ASSERT_LE(std::sqrt(squares / double(g.original.size())), bound.rms) << what;
    ASSERT_LE(worst, bound.each) << what;
}

std::string name_of(const EncodedPage& page, int group) {
    return std::string(page.format->name) + (page.role == KvRole::key ? " key" : " value") + " head_dim " +
           std::to_string(page.head_dim) + " group " + std::to_string(group);
}

TEST(Codec, ErrorIsWithinHalfAStep) {
    std::mt19937 rng(61);
    for (const ColdFormat& format : cold_formats()) {
        for (const KvRole role : {KvRole::key, KvRole::value}) {
            for (const int dim : kHeadDims) {
                for (const RowData kind : kAllRowData) {
                    const auto rows = make_rows(kind, dim, rng);
                    const EncodedPage page(format, role, dim, rows);
                    const std::vector<double> x = in_codec_basis(role, dim, rows);
                    const std::vector<Bound> bounds = bounds_of(page, x);
                    for (int i = 0; i < int(bounds.size()); ++i) {
                        expect_within(bounds[i], group_of(page, x, i),
                                      name_of(page, i) + " " + to_string(kind));
                        if (HasFatalFailure()) return;
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
    // Narrow keys: gaussian channels of one magnitude are what widths by channel are no help for. q2 has 2
    // bits everywhere and scales of a byte, q3 3 bits for three channels of four and 2 for the rest,
    // sqrt(0.75 * 0.19^2 + 0.25 * 0.45^2).
    struct Limit {
        const char* name;
        double key, value;
    };
    const Limit limits[] = {{"q2", 0.45, 0.36},  {"q3", 0.28, 0.2},    {"q4", 0.1, 0.105},
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

// What widths by channel are for: channels of magnitudes from 1/16 to 16. Relative RMS, each channel's
// squared error weighed by its magnitude, at 0.43 and 0.19 for all channels in 2 and 3 bits.
TEST(Codec, WidthsFollowTheChannels) {
    std::mt19937 rng(69);
    constexpr int dim = 128;
    const std::pair<const char*, double> limits[] = {{"q2", 0.3}, {"q3", 0.17}};
    for (const auto& [name, limit] : limits) {
        const auto rows = make_rows(RowData::graded, dim, rng);
        const EncodedPage page(*find_cold_format(name), KvRole::key, dim, rows);
        double error = 0, norm = 0;
        for (int c = 0; c < dim; ++c) {
            double e = 0, n = 0;
            for (int t = 0; t < kPageTokens; ++t) {
                const double v = fp16_to_fp32(rows[std::size_t(t) * dim + c]);
                e += std::pow(page.reader().value(t, c) - v, 2);
                n += v * v;
            }
            error += e * std::sqrt(n);
            norm += n * std::sqrt(n);
        }
        EXPECT_LE(std::sqrt(error / norm), limit) << name;
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
                for (const RowData kind : {RowData::gaussian, RowData::outlier_channels, RowData::graded}) {
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

// Widths by channel are chosen by ranges, which decoding changes: on their own they would be chosen otherwise
// in most blocks, and the codes of every channel that lost bits would be rounded again.
TEST(Codec, NarrowKeysFindTheirWidthsAgain) {
    std::mt19937 rng(70);
    std::normal_distribution<float> normal;
    for (const char* name : {"q3", "q2"}) {
        const ColdFormat& format = *find_cold_format(name);
        for (const int dim : {32, 64, 128}) {
            int n_changed = 0;
            double worst = 0;
            constexpr int kBlocks = 30;
            for (int block = 0; block < kBlocks; ++block) {
                // Magnitudes and means as different as those of a model's channels.
                std::vector<float> magnitude(dim), mean(dim);
                for (int c = 0; c < dim; ++c) {
                    magnitude[c] = std::exp(normal(rng));
                    mean[c] = 4.0f * magnitude[c] * normal(rng);
                }
                std::vector<std::uint16_t> original;
                for (int i = 0; i < kPageTokens * dim; ++i) {
                    original.push_back(fp32_to_fp16(mean[i % dim] + magnitude[i % dim] * normal(rng)));
                }
                const EncodedPage first(format, KvRole::key, dim, original);
                const auto once = decoded_rows(first);
                auto rows = once;
                for (int cycle = 1; cycle < 10; ++cycle) {
                    const EncodedPage again(format, KvRole::key, dim, rows);
                    rows = decoded_rows(again);
                    bool same = true;
                    for (int c = 0; c < dim; ++c) {
                        same = same && again.reader().width(c) == first.reader().width(c);
                    }
                    n_changed += same ? 0 : 1;
                }
                worst = std::max(worst, rms(rows, original) / rms(once, original));
            }
            EXPECT_EQ(n_changed, 0) << name << " " << dim;
            EXPECT_LE(worst, 1.01) << name << " " << dim;
        }
    }
}

// Few values lie apart as if they had been decoded: no reason to give their channels fewer bits.
TEST(Codec, FewRowsHaveAllWidths) {
    std::mt19937 rng(71);
    constexpr int dim = 64;
    auto rows = make_rows(RowData::gaussian, dim, rng);
    for (int i = 0; i < kPageTokens * dim; ++i) {
        if (i % dim < 16) rows[i] = fp32_to_fp16(100.0f * fp16_to_fp32(rows[i]));
    }
    for (const int n : {3, 11, 12, 64}) {
        const std::uint64_t counted = ~std::uint64_t{0} >> (kPageTokens - n);
        const EncodedPage page(*find_cold_format("q3"), KvRole::key, dim, rows, counted);
        for (int c = 0; c < 16; ++c) EXPECT_EQ(page.reader().width(c), 6) << n << " rows, channel " << c;
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
                const std::vector<Bound> bounds = bounds_of(page, x);
                for (int i = 0; i < int(bounds.size()); ++i) {
                    if (role == KvRole::value && i == 7) continue;
                    expect_within(bounds[i], group_of(page, x, i), name_of(page, i));
                    if (HasFatalFailure()) return;
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
            // In units of the range: tiers may give the channel another width.
            const auto reach = [c](const formats::BlockReader& r) {
                return r.scale(0, c) * static_cast<float>((1 << r.width(c)) - 1);
            };
            const formats::BlockReader narrow = without.reader();
            EXPECT_GT(reach(with.reader()), 20.0f * reach(narrow));
            EXPECT_EQ(narrow.code(0, c), (1 << narrow.width(c)) - 1);  // clamped
        }
    }
}

}  // namespace
}  // namespace mixed_kv::testing
