// qk and pv over cold pages: every format, instruction set, head size and row count against double arithmetic
// on the decoded values.

#include <algorithm>
#include <cstring>
#include <utility>

#include "kernels/kernel_test_support.h"
#include "mixed_kv/fp16.h"

namespace mixed_kv::testing {
namespace {

// Derived in docs/cold-formats.md: rounding q * scale to about 15 bits leaves 0.2e-4 to 1e-4 at sigma = 1.
constexpr double kLogitTolerance = 2e-4;

int padded(int head_dim) { return (head_dim + 15) / 16 * 16; }

// Gaussian channels share few widths, graded ones have all of them.
std::vector<RowData> key_data(const ColdFormat& format) {
    return formats::is_narrow(format.code_bits) ? std::vector{RowData::gaussian, RowData::graded}
                                                : std::vector{RowData::gaussian};
}

struct QkRun {
    Guarded<float> q, scores;
    Guarded<std::byte> scratch;
    int n_rows, stride;

    QkRun(const kernels::KernelSet& set, int head_dim, int rows)
        : q(std::size_t(rows) * padded(head_dim)),
          scores(std::size_t(rows) * kPageTokens),
          scratch((set.scratch_bytes(head_dim) + 63) / 64 * 64),
          n_rows(rows),
          stride(padded(head_dim)) {}
    kernels::QkArgs args(kernels::PageData page) const {
        return {page, q.data(), stride, n_rows, scores.data(), scratch.data()};
    }
    std::span<const float> row(int r) const {
        return {scores.data() + std::ptrdiff_t(r) * kPageTokens, kPageTokens};
    }
};

struct PvRun {
    Guarded<float> p, o;
    std::vector<float> before;
    Guarded<std::byte> scratch;
    int n_rows, stride;

    PvRun(const kernels::KernelSet& set, int head_dim, int rows)
        : p(std::size_t(rows) * kPageTokens),
          o(std::size_t(rows) * padded(head_dim)),
          scratch((set.scratch_bytes(head_dim) + 63) / 64 * 64),
          n_rows(rows),
          stride(padded(head_dim)) {}
    void fill(std::mt19937& rng, float sigma_o) {
        std::normal_distribution<float> normal(0.0f, 1.0f);
        for (float& x : o.span()) {
            x = sigma_o * normal(rng);
        }
        before.assign(o.span().begin(), o.span().end());
        fill_weights(p.data(), n_rows, kPageTokens, rng);
    }
    kernels::PvArgs args(kernels::PageData page) const {
        return {page, p.data(), n_rows, o.data(), stride, scratch.data()};
    }
    std::span<const float> row(int r) const {
        return {o.data() + std::ptrdiff_t(r) * stride, std::size_t(stride)};
    }
};

class ColdAttention : public IsaTest {};

// The scalar kernels, which take fewer rows per call than some sets.
void scalar_qk(int format, kernels::QkArgs args) {
    const int n_rows = args.n_rows;
    for (int r = 0; r < n_rows; r += args.n_rows) {
        args.n_rows = std::min(kernels::kMaxDecodeRows, n_rows - r);
        scalar_kernels().formats[format].qk(args);
        args.q += args.n_rows * args.q_stride;
        args.scores += std::ptrdiff_t(args.n_rows) * kPageTokens;
    }
}

TEST_P(ColdAttention, KeysMatchDoubleReference) {
    std::mt19937 rng(1);
    int index = 0;
    for (const ColdFormat& format : cold_formats()) {
        const kernels::FormatKernels& k = kernels().formats[index++];
        for (const int dim : kHeadDims) {
            for (const RowData kind : key_data(format)) {
                const EncodedPage page(format, KvRole::key, dim, make_rows(kind, dim, rng));
                for (const int n_rows : row_counts(kernels())) {
                    const QkRun run(kernels(), dim, n_rows);
                    fill_queries(run.q.data(), n_rows, dim, run.stride, 1.0f, rng);
                    k.qk(run.args(page.page()));
                    for (int r = 0; r < n_rows; ++r) {
                        const Reference want =
                            reference_qk(page, run.q.data() + std::ptrdiff_t(r) * run.stride);
                        SCOPED_TRACE(std::string(format.name) + " " + to_string(kind) + " head_dim " +
                                     std::to_string(dim) + " row " + std::to_string(r) + " of " +
                                     std::to_string(n_rows));
                        ASSERT_TRUE(within_bound(want, run.row(r)));
                        ASSERT_TRUE(relative_rms(want, run.row(r), kLogitTolerance));
                    }
                }
            }
        }
    }
}

// QkArgs::accumulate: the same numbers, added to what is there. Heavy queries take the second pass too: none,
// all, or every third one.
TEST_P(ColdAttention, ScoresAreAddedWhereAsked) {
    std::mt19937 rng(7);
    int index = 0;
    for (const ColdFormat& format : cold_formats()) {
        const kernels::FormatKernels& k = kernels().formats[index++];
        for (const int dim : {40, 80, 128}) {
            const EncodedPage page(format, KvRole::key, dim, make_rows(RowData::gaussian, dim, rng));
            EncodedPage exact(format, KvRole::key, dim, make_rows(key_data(format).back(), dim, rng));
            exact.make_integer_only();
            for (const auto& [sigma, others] :
                 {std::pair{1.0f, 1.0f}, std::pair{100.0f, 1.0f}, std::pair{100.0f, 0.01f}}) {
                for (const int n_rows : row_counts(kernels())) {
                    SCOPED_TRACE(std::string(format.name) + " head_dim " + std::to_string(dim) + " rows " +
                                 std::to_string(n_rows) + " sigma " + std::to_string(sigma) + " others " +
                                 std::to_string(others));
                    const QkRun run(kernels(), dim, n_rows), scalar(scalar_kernels(), dim, n_rows);
                    fill_queries(run.q.data(), n_rows, dim, run.stride, sigma, rng);
                    for (int r = 0; r < n_rows; ++r) {
                        float* q = run.q.data() + std::ptrdiff_t(r) * run.stride;
                        for (int c = 0; c < dim && r % 3 != 1; ++c) q[c] *= others;
                    }
                    std::memcpy(scalar.q.data(), run.q.data(), run.q.size() * sizeof(float));
                    std::vector<float> before(run.scores.size());
                    for (float& x : before) x = sigma * static_cast<float>(rng() & 1023) / 256.0f;
                    std::copy(before.begin(), before.end(), run.scores.data());
                    kernels::QkArgs args = run.args(page.page());
                    args.accumulate = true;
                    k.qk(args);
                    for (int r = 0; r < n_rows; ++r) {
                        Reference want = reference_qk(page, run.q.data() + std::ptrdiff_t(r) * run.stride);
                        for (int t = 0; t < kPageTokens; ++t) {
                            const double old = before[std::size_t(r) * kPageTokens + t];
                            want.value[t] += old;
                            want.bound[t] += 4 * 0x1p-24 * (std::abs(old) + std::abs(want.value[t]));
                        }
                        ASSERT_TRUE(within_bound(want, run.row(r))) << "row " << r;
                    }
                    std::copy(before.begin(), before.end(), run.scores.data());
                    std::copy(before.begin(), before.end(), scalar.scores.data());
                    args.keys = exact.page();
                    k.qk(args);
                    kernels::QkArgs scalar_args = scalar.args(exact.page());
                    scalar_args.accumulate = true;
                    scalar_qk(index - 1, scalar_args);
                    for (std::size_t i = 0; i < before.size(); ++i) {
                        ASSERT_EQ(run.scores[i], scalar.scores[i]) << "score " << i;
                    }
                }
            }
        }
    }
}

TEST_P(ColdAttention, ValuesMatchDoubleReference) {
    std::mt19937 rng(2);
    int index = 0;
    for (const ColdFormat& format : cold_formats()) {
        const kernels::FormatKernels& k = kernels().formats[index++];
        for (const int dim : kHeadDims) {
            const EncodedPage page(format, KvRole::value, dim, make_rows(RowData::gaussian, dim, rng));
            for (const int n_rows : row_counts(kernels())) {
                PvRun run(kernels(), dim, n_rows);
                run.fill(rng, 1.0f);
                k.pv(run.args(page.page()));
                for (int r = 0; r < n_rows; ++r) {
                    const Reference want = reference_pv(page, run.p.data() + std::ptrdiff_t(r) * kPageTokens,
                                                        run.before.data() + std::ptrdiff_t(r) * run.stride);
                    SCOPED_TRACE(std::string(format.name) + " head_dim " + std::to_string(dim) + " row " +
                                 std::to_string(r) + " of " + std::to_string(n_rows));
                    ASSERT_TRUE(within_bound(want, run.row(r)));
                    ASSERT_TRUE(relative_rms(want, run.row(r), kLogitTolerance));
                }
            }
        }
    }
}

TEST_P(ColdAttention, DifficultRowsStayWithinTheBound) {
    std::mt19937 rng(3);
    int index = 0;
    for (const ColdFormat& format : cold_formats()) {
        const kernels::FormatKernels& k = kernels().formats[index++];
        for (const RowData kind : kAllRowData) {
            for (const int dim : {40, 128, 576}) {
                for (const int n_rows : {5, 21}) {
                    SCOPED_TRACE(std::string(format.name) + " " + to_string(kind) + " head_dim " +
                                 std::to_string(dim) + " rows " + std::to_string(n_rows));
                    const auto rows = make_rows(kind, dim, rng);
                    const EncodedPage keys(format, KvRole::key, dim, rows),
                        values(format, KvRole::value, dim, rows);
                    const QkRun qk(kernels(), dim, n_rows);
                    fill_queries(qk.q.data(), n_rows, dim, qk.stride, 3.0f, rng);
                    PvRun pv(kernels(), dim, n_rows);
                    pv.fill(rng, 0.0f);
                    k.qk(qk.args(keys.page()));
                    k.pv(pv.args(values.page()));
                    for (int r = 0; r < n_rows; ++r) {
                        const float* q = qk.q.data() + std::ptrdiff_t(r) * qk.stride;
                        ASSERT_TRUE(within_bound(reference_qk(keys, q), qk.row(r)));
                        ASSERT_TRUE(
                            within_bound(reference_pv(values, pv.p.data() + std::ptrdiff_t(r) * kPageTokens,
                                                      pv.before.data() + std::ptrdiff_t(r) * pv.stride),
                                         pv.row(r)));
                    }
                }
            }
        }
    }
}

// The integers themselves: with scales that are powers of two and no constant term, results are bit-equal.
TEST_P(ColdAttention, IntegerSumsEqualTheScalarOnes) {
    std::mt19937 rng(4);
    int index = 0;
    for (const ColdFormat& format : cold_formats()) {
        const kernels::FormatKernels& k = kernels().formats[index];
        const kernels::FormatKernels& scalar = scalar_kernels().formats[index++];
        for (const int dim : kHeadDims) {
            SCOPED_TRACE(std::string(format.name) + " head_dim " + std::to_string(dim));
            const auto rows = make_rows(key_data(format).back(), dim, rng);
            EncodedPage keys(format, KvRole::key, dim, rows), values(format, KvRole::value, dim, rows);
            keys.make_integer_only();
            values.make_integer_only();
            for (const int n_rows : row_counts(kernels())) {
                const QkRun qk(kernels(), dim, n_rows), qk_scalar(scalar_kernels(), dim, n_rows);
                fill_queries(qk.q.data(), n_rows, dim, qk.stride, 1.0f, rng);
                std::memcpy(qk_scalar.q.data(), qk.q.data(), qk.q.size() * sizeof(float));
                k.qk(qk.args(keys.page()));
                scalar_qk(index - 1, qk_scalar.args(keys.page()));
                PvRun pv(kernels(), dim, n_rows), pv_scalar(scalar_kernels(), dim, n_rows);
                pv.fill(rng, 0.0f);
                pv_scalar.fill(rng, 0.0f);
                // Few bits each, so that their sums are exact in any order.
                for (std::size_t i = 0; i < pv.p.size(); ++i)
                    pv.p.data()[i] = std::floor(pv.p.data()[i] * 256) / 256;
                std::memcpy(pv_scalar.p.data(), pv.p.data(), pv.p.size() * sizeof(float));
                // Every third row takes a second pass.
                std::vector<float> mass(std::size_t(n_rows), 1e6f);
                for (std::size_t r = 1; r < mass.size(); r += 3) mass[r] = 0.5f;
                kernels::PvArgs args = pv.args(values.page()), scalar_args = pv_scalar.args(values.page());
                args.mass = scalar_args.mass = mass.data();
                k.pv(args);
                scalar.pv(scalar_args);
                for (int r = 0; r < n_rows; ++r) {
                    for (int t = 0; t < kPageTokens; ++t) {
                        ASSERT_EQ(qk.row(r)[t], qk_scalar.row(r)[t]) << "row " << r << " token " << t;
                    }
                    for (int c = 0; c < dim; ++c) {
                        ASSERT_EQ(pv.row(r)[c], pv_scalar.row(r)[c]) << "row " << r << " channel " << c;
                    }
                }
            }
        }
    }
}

// The largest sums there are: every code the largest or the smallest, every integer of a row the limit.
// Kernels multiply some codes where they lie in the byte, which takes 4 bits more.
TEST_P(ColdAttention, LargestIntegerSumsEqualTheScalarOnes) {
    int index = 0;
    for (const ColdFormat& format : cold_formats()) {
        const kernels::FormatKernels& k = kernels().formats[index];
        const kernels::FormatKernels& scalar = scalar_kernels().formats[index++];
        for (const int dim : {128, 256, 260, 272, 512, 576, 1024}) {
            SCOPED_TRACE(std::string(format.name) + " head_dim " + std::to_string(dim));
            std::vector<std::uint16_t> rows(std::size_t(kPageTokens) * std::size_t(dim), fp32_to_fp16(1.0f));
            std::fill_n(rows.begin(), 3 * dim, fp32_to_fp16(-1.0f));
            EncodedPage keys(format, KvRole::key, dim, rows);
            keys.make_integer_only();
            constexpr int n_rows = 6;
            const QkRun run(kernels(), dim, n_rows), want(scalar_kernels(), dim, n_rows);
            std::fill(run.q.data(), run.q.data() + run.q.size(), 0.0f);
            for (int r = 0; r < n_rows; ++r) {
                for (int c = 0; c < dim; ++c) {
                    const float sign = r % 2 == 0 ? 1.0f : -1.0f;  // times the scale: the same everywhere
                    run.q[std::size_t(r) * std::size_t(run.stride) + std::size_t(c)] =
                        sign * std::ldexp(1.0f, c * 5 % 4);
                }
            }
            std::memcpy(want.q.data(), run.q.data(), run.q.size() * sizeof(float));
            k.qk(run.args(keys.page()));
            scalar.qk(want.args(keys.page()));
            for (int r = 0; r < n_rows; ++r) {
                for (int t = 0; t < kPageTokens; ++t) {
                    ASSERT_EQ(run.row(r)[t], want.row(r)[t]) << "row " << r << " token " << t;
                }
            }
        }
    }
}

TEST_P(ColdAttention, NotFiniteQueriesReachTheResult) {
    std::mt19937 rng(5);
    int index = 0;
    for (const ColdFormat& format : cold_formats()) {
        const kernels::FormatKernels& k = kernels().formats[index++];
        const EncodedPage page(format, KvRole::key, 64, make_rows(RowData::gaussian, 64, rng));
        for (const float bad :
             {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
            for (const int n_rows : {3, 18}) {
                const QkRun run(kernels(), 64, n_rows);
                fill_queries(run.q.data(), n_rows, 64, run.stride, 1.0f, rng);
                run.q[64 + 17] = bad;
                k.qk(run.args(page.page()));
                for (int r = 0; r < n_rows; ++r) {
                    for (int t = 0; t < kPageTokens; ++t) {
                        ASSERT_EQ(std::isfinite(run.row(r)[t]), r != 1) << "row " << r << " token " << t;
                    }
                }
            }
        }
    }
}

TEST_P(ColdAttention, ZeroQueriesAndWeightsGiveZero) {
    std::mt19937 rng(6);
    int index = 0;
    for (const ColdFormat& format : cold_formats()) {
        const kernels::FormatKernels& k = kernels().formats[index++];
        const auto rows = make_rows(RowData::outlier_channels, 72, rng);
        const EncodedPage keys(format, KvRole::key, 72, rows), values(format, KvRole::value, 72, rows);
        for (const int n_rows : {2, 18}) {
            const QkRun qk(kernels(), 72, n_rows);
            std::memset(qk.q.data(), 0, qk.q.size() * sizeof(float));
            k.qk(qk.args(keys.page()));
            PvRun pv(kernels(), 72, n_rows);
            pv.fill(rng, 1.0f);
            std::memset(pv.p.data(), 0, pv.p.size() * sizeof(float));
            k.pv(pv.args(values.page()));
            for (int r = 0; r < n_rows; ++r) {
                for (int t = 0; t < kPageTokens; ++t) {
                    ASSERT_EQ(qk.row(r)[t], 0.0f);
                }
                for (int c = 0; c < 72; ++c) {
                    ASSERT_EQ(pv.row(r)[c], pv.before[std::size_t(r) * pv.stride + c]);
                }
            }
        }
    }
}

MIXED_KV_FOR_EVERY_ISA(ColdAttention);

}  // namespace
}  // namespace mixed_kv::testing
