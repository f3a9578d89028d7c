// qk, pv and decode over FP16 pages, hot (contiguous) and pinned (strided), of any number of tokens.

#include <cmath>
#include <iterator>
#include <vector>

#include "kernels/kernel_test_support.h"
#include "mixed_kv/fp16.h"

namespace mixed_kv::testing {
namespace {

constexpr double kFloatTolerance = 3e-5;  // relative RMS of float sums
constexpr double kRounding = 0x1p-24;

// FP16 rows that end at a guard page, n_tokens of them, with NaN between the rows of a strided page.
struct Fp16Page {
    int n_tokens, dim, stride;
    Guarded<std::uint16_t> rows;

    Fp16Page(int tokens, int head_dim, int row_stride, std::mt19937& rng)
        : n_tokens(tokens),
          dim(head_dim),
          stride(row_stride),
          rows(std::size_t(tokens - 1) * row_stride + head_dim) {
        const auto data = make_rows(RowData::gaussian, dim, rng);
        for (int t = 0; t < tokens; ++t) {
            for (int c = 0; c < dim; ++c) {
                rows[std::size_t(t) * stride + c] = data[std::size_t(t) * dim + c];
            }
        }
    }
    double at(int t, int c) const { return fp16_to_fp32(rows[std::size_t(t) * stride + c]); }
    kernels::PageData page() const {
        return {reinterpret_cast<const std::byte*>(rows.data()), std::ptrdiff_t(stride) * 2, n_tokens, dim};
    }
};

// All row counts, and more where the kernels over FP16 pages take more.
std::vector<int> fp16_row_counts(const kernels::KernelSet& set) {
    std::vector<int> counts = row_counts(set);
    if (set.fp16_rows > set.max_rows) counts.insert(counts.end(), {19, 33, set.fp16_rows});
    return counts;
}

constexpr int kTokenCounts[] = {1, 2, 7, 31, 63, 64};

class Fp16Pages : public IsaTest {};

TEST_P(Fp16Pages, KeysMatchDoubleReference) {
    const double product_error = double(kernels().product_error);
    std::mt19937 rng(21);
    for (const int dim : kHeadDims) {
        for (const int n_tokens : kTokenCounts) {
            const Fp16Page page(n_tokens, dim, n_tokens % 2 == 0 ? dim : 3 * dim, rng);
            for (const int n_rows : fp16_row_counts(kernels())) {
                const int stride = (dim + 15) / 16 * 16;
                const Guarded<float> q(std::size_t(n_rows) * stride),
                    scores(std::size_t(n_rows) * kPageTokens);
                const Guarded<std::byte> scratch((kernels().scratch_bytes(dim) + 63) / 64 * 64);
                fill_queries(q.data(), n_rows, dim, stride, 1.0f, rng);
                for (float& s : scores.span()) {
                    s = -123.0f;
                }
                kernels().qk_f16({page.page(), q.data(), stride, n_rows, scores.data(), scratch.data()});
                for (int r = 0; r < n_rows; ++r) {
                    Reference want;
                    for (int t = 0; t < n_tokens; ++t) {
                        double value = 0, bound = 1e-30;
                        for (int c = 0; c < dim; ++c) {
                            const double product = q[std::size_t(r) * stride + c] * page.at(t, c);
                            value += product;
                            // A quarter of what one chain of dim sums may lose: roundings of either sign
                            // nearly cancel.
                            bound += ((dim / 4 + 4) * kRounding + product_error) * std::abs(product);
                        }
                        want.value.push_back(value);
                        want.bound.push_back(bound);
                    }
                    const std::span<const float> got(scores.data() + std::ptrdiff_t(r) * kPageTokens,
                                                     kPageTokens);
                    SCOPED_TRACE("head_dim " + std::to_string(dim) + " tokens " + std::to_string(n_tokens) +
                                 " row " + std::to_string(r) + " of " + std::to_string(n_rows));
                    ASSERT_TRUE(within_bound(want, got));
                    if (n_tokens >= 31) {  // of few logits, all may happen to be small
                        ASSERT_TRUE(relative_rms(want, got, kFloatTolerance));
                    }
                    for (int t = n_tokens; t < kPageTokens; ++t) {
                        ASSERT_EQ(got[t], -123.0f) << "column beyond n_tokens";
                    }
                }
            }
        }
    }
}

TEST_P(Fp16Pages, ValuesMatchDoubleReference) {
    const double product_error = double(kernels().product_error);
    std::mt19937 rng(22);
    for (const int dim : kHeadDims) {
        for (const int n_tokens : kTokenCounts) {
            const Fp16Page page(n_tokens, dim, n_tokens % 2 == 0 ? dim : 3 * dim, rng);
            for (const int n_rows : fp16_row_counts(kernels())) {
                const int stride = (dim + 15) / 16 * 16;
                const Guarded<float> p(std::size_t(n_rows) * kPageTokens), o(std::size_t(n_rows) * stride);
                const Guarded<std::byte> scratch((kernels().scratch_bytes(dim) + 63) / 64 * 64);
                fill_weights(p.data(), n_rows, n_tokens, rng);
                std::vector<float> before;
                for (float& x : o.span()) {
                    x = float(rng() % 100) * 0.01f;
                    before.push_back(x);
                }
                kernels().pv_f16({page.page(), p.data(), n_rows, o.data(), stride, scratch.data()});
                for (int r = 0; r < n_rows; ++r) {
                    Reference want;
                    for (int c = 0; c < dim; ++c) {
                        double value = before[std::size_t(r) * stride + c];
                        double bound = 1e-30 + (n_tokens + 4) * kRounding * value;
                        for (int t = 0; t < n_tokens; ++t) {
                            const double product = p[std::size_t(r) * kPageTokens + t] * page.at(t, c);
                            value += product;
                            bound += ((n_tokens + 4) * kRounding + product_error) * std::abs(product);
                        }
                        want.value.push_back(value);
                        want.bound.push_back(bound);
                    }
                    const std::span<const float> got(o.data() + std::ptrdiff_t(r) * stride, stride);
                    SCOPED_TRACE("head_dim " + std::to_string(dim) + " tokens " + std::to_string(n_tokens) +
                                 " row " + std::to_string(r) + " of " + std::to_string(n_rows));
                    ASSERT_TRUE(within_bound(want, got));
                    ASSERT_TRUE(relative_rms(want, got, kFloatTolerance));
                }
            }
        }
    }
}

// Infinity is what it is in float arithmetic: attention tells an overflowed key that hides itself from one
// that does not.
TEST_P(Fp16Pages, InfiniteRowsStayInfinite) {
    std::mt19937 rng(24);
    constexpr int kDim = 72, kStride = 80, kToken = 37, kChannel = 41;
    for (const int n_rows : {3, 18}) {
        const Fp16Page page(kPageTokens, kDim, kDim, rng);
        page.rows[std::size_t(kToken) * kDim + kChannel] = 0x7c00;
        const Guarded<std::byte> scratch((kernels().scratch_bytes(kDim) + 63) / 64 * 64);
        const Guarded<float> q(std::size_t(n_rows) * kStride), scores(std::size_t(n_rows) * kPageTokens);
        fill_queries(q.data(), n_rows, kDim, kStride, 1.0f, rng);
        kernels().qk_f16({page.page(), q.data(), kStride, n_rows, scores.data(), scratch.data()});
        const Guarded<float> p(std::size_t(n_rows) * kPageTokens), o(std::size_t(n_rows) * kStride);
        for (float& x : p.span()) x = 0.5f;
        for (float& x : o.span()) x = 0.0f;
        kernels().pv_f16({page.page(), p.data(), n_rows, o.data(), kStride, scratch.data()});
        for (int r = 0; r < n_rows; ++r) {
            const float infinity = std::numeric_limits<float>::infinity();
            const float sign = q[std::size_t(r) * kStride + kChannel] > 0 ? 1.0f : -1.0f;
            for (int t = 0; t < kPageTokens; ++t) {
                const float score = scores[std::size_t(r) * kPageTokens + t];
                ASSERT_TRUE(t == kToken ? score == sign * infinity : std::isfinite(score)) << r << ' ' << t;
            }
            for (int c = 0; c < kDim; ++c) {
                const float value = o[std::size_t(r) * kStride + c];
                ASSERT_TRUE(c == kChannel ? value == infinity : std::isfinite(value)) << r << ' ' << c;
            }
        }
    }
}

TEST_P(Fp16Pages, DecodeIsExact) {
    std::mt19937 rng(23);
    for (const int dim : kHeadDims) {
        for (const int n_tokens : kTokenCounts) {
            const Fp16Page page(n_tokens, dim, n_tokens % 2 == 0 ? dim : 3 * dim, rng);
            for (const bool transposed : {false, true}) {
                const int n_out = transposed ? dim : kPageTokens;
                const int width = transposed ? kPageTokens : dim;
                const int stride = transposed ? 64 : dim + 5;
                const Guarded<float> out(std::size_t(n_out - 1) * stride + width);
                kernels().decode_f16({page.page(), out.data(), stride, transposed});
                for (int t = 0; t < kPageTokens; ++t) {
                    for (int c = 0; c < dim; ++c) {
                        const float got =
                            out[transposed ? std::size_t(c) * stride + t : std::size_t(t) * stride + c];
                        ASSERT_EQ(got, t < n_tokens ? page.at(t, c) : 0.0)
                            << "token " << t << " channel " << c;
                    }
                }
            }
        }
    }
}

MIXED_KV_FOR_EVERY_ISA(Fp16Pages);

}  // namespace
}  // namespace mixed_kv::testing
