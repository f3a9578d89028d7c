#pragma once

#include <limits>

#include "kernels/shared/tiles.h"

// Logits over a page of 64 scores, and the online softmax over one or several pages.
namespace mixed_kv::kernels::shared {
namespace {

constexpr float kMasked = -std::numeric_limits<float>::infinity();

// e^x for x <= 40, relative error below 2e-7; 0 below -87.33 (where results would be subnormal), NaN for NaN.
// x = n ln 2 + r with |r| <= ln 2 / 2. The polynomial of degree 6 keeps 1 + r + r^2 / 2 and takes the other
// coefficients from interpolation at Chebyshev nodes; it is exact to 1.1e-8.
template <typename L>
inline typename L::F exp_of(typename L::F x) noexcept {
    // Added to a number below 2^22, it leaves the number's integer, plus 127, in the low bits.
    const auto to_integer = L::all(0x1.8p23f + 127.0f);
    const auto z = L::fma(x, L::all(1.44269504089f), to_integer);
    const auto n = L::sub(z, to_integer);
    auto r = L::fnma(n, L::all(0.693359375f), x);  // ln 2 in two parts, the first exact in n * it
    r = L::fnma(n, L::all(-2.12194440e-4f), r);
    auto p = L::all(1.3926180e-3f);
    p = L::fma(p, r, L::all(8.3631761e-3f));
    p = L::fma(p, r, L::all(4.1666556e-2f));
    p = L::fma(p, r, L::all(1.6666576e-1f));
    p = L::fma(p, r, L::all(0.5f));
    p = L::fma(p, r, L::all(1.0f));
    p = L::fma(p, r, L::all(1.0f));
    const auto result = L::mul(p, L::exponent(z));
    return L::select(L::less(x, L::all(-87.33f)), L::all(0.0f), result);
}

// tanh, relative error below 3e-7: an odd polynomial (Cephes tanhf) below 0.625, else 1 - 2 / (e^2|x| + 1).
template <typename L>
inline typename L::F tanh_of(typename L::F x) noexcept {
    const auto ten = L::all(10.0f);  // tanh(10) rounds to 1
    const auto whole = L::abs(x);
    const auto magnitude = L::select(L::less(ten, whole), ten, whole);  // keeps NaN
    const auto x2 = L::mul(magnitude, magnitude);
    auto p = L::all(-5.70498872745e-3f);
    p = L::fma(p, x2, L::all(2.06390887954e-2f));
    p = L::fma(p, x2, L::all(-5.37397155531e-2f));
    p = L::fma(p, x2, L::all(1.33314422036e-1f));
    p = L::fma(p, x2, L::all(-3.33332819422e-1f));
    const auto small = L::fma(L::mul(p, x2), magnitude, magnitude);
    const auto e = exp_of<L>(L::add(magnitude, magnitude));
    const auto one = L::all(1.0f);
    const auto large = L::sub(one, L::div(L::all(2.0f), L::add(e, one)));
    return L::copy_sign(L::select(L::less(magnitude, L::all(0.625f)), small, large), x);
}

// Whether a row whose largest score is -inf has nothing but masked scores: NaN is no number to be the
// largest.
inline bool all_masked(const SoftmaxArgs& a, int r) noexcept {
    bool masked = true;
    const float* s = a.scores + std::ptrdiff_t(r) * kPage;
    for (int page = 0; page < a.n_pages; ++page, s += a.page_stride) {
        for (int t = 0; t < kPage; ++t) masked = masked && s[t] == kMasked;
    }
    return masked;
}

// One step for kRows <= 4 rows from r on: what is done once per row is done for all of them in one vector.
template <typename L, int kRows>
inline void softmax_rows(const SoftmaxArgs& a, int r) noexcept {
    constexpr int kW = L::kWidth;
    static_assert(kW >= kTileRows);
    float* const scores = a.scores + std::ptrdiff_t(r) * kPage;
    const auto masked = L::all(kMasked);
    typename L::F largest[kRows];
    alignas(64) float seen[kW] = {};  // not 0: the row has a score
    unroll<kRows>([&](auto row) {
        const float* s = scores + row.value * kPage;
        auto top0 = masked, top1 = masked;
        for (int page = 0; page < a.n_pages; ++page, s += a.page_stride) {
            for (int t = 0; t < kPage; t += 2 * kW) {
                top0 = L::max(L::load(s + t), top0);  // skips NaN
                top1 = L::max(L::load(s + t + kW), top1);
            }
        }
        largest[row.value] = L::max(top0, top1);
    });
    const auto row_largest = L::template max_each<kRows>(largest);
    alignas(64) float tops[kW];
    L::store(tops, row_largest);
    unroll<kRows>([&](auto row) {
        constexpr int i = decltype(row)::value;
        seen[i] = tops[i] == kMasked && all_masked(a, r + i) ? 0.0f : 1.0f;
    });

    // A row whose scores are all -inf: m stays, p = exp(-inf - 0), rescale = 1.
    const auto has_scores = L::less(L::all(0.0f), L::load(seen));
    const auto m_before = L::load(a.m + r, kRows);
    const auto m = L::max(m_before, row_largest);
    const auto rescale = L::select(has_scores, exp_of<L>(L::sub(m_before, m)), L::all(1.0f));
    alignas(64) float shift[kW];
    L::store(shift, L::keep(has_scores, m));

    typename L::F sum[kRows];
    unroll<kRows>([&](auto row) {
        const auto top = L::all(shift[row.value]);
        float* s = scores + row.value * kPage;
        auto sum0 = L::all(0.0f), sum1 = sum0;
        for (int page = 0; page < a.n_pages; ++page, s += a.page_stride) {
            for (int t = 0; t < kPage; t += 2 * kW) {
                const auto p0 = exp_of<L>(L::sub(L::load(s + t), top));
                const auto p1 = exp_of<L>(L::sub(L::load(s + t + kW), top));
                L::store(s + t, p0);
                L::store(s + t + kW, p1);
                sum0 = L::add(sum0, p0);
                sum1 = L::add(sum1, p1);
            }
        }
        sum[row.value] = L::add(sum0, sum1);
    });
    const auto l = L::fma(L::load(a.l + r, kRows), rescale, L::template sum_each<kRows>(sum));
    L::store(a.m + r, m, kRows);
    L::store(a.l + r, l, kRows);
    L::store(a.rescale + r, rescale, kRows);
}

template <typename L>
inline void softmax(const SoftmaxArgs& a) noexcept {
    for_row_tiles<kTileRows>(a.n_rows,
                             [&](int r, auto rows) { softmax_rows<L, decltype(rows)::value>(a, r); });
}

template <typename L>
inline void logits(const LogitArgs& a) noexcept {
    constexpr int kW = L::kWidth;
    const auto masked = L::all(kMasked);
    const auto cap = L::all(a.softcap), slope = L::all(a.slope);
    for (int t = 0; t < kPage; t += kW) {
        const int n = a.n_tokens - t;
        if (n <= 0) {
            L::store(a.scores + t, masked);
            continue;
        }
        auto x = L::load(a.scores + t);
        if (a.softcap != 0.0f) {
            x = L::mul(cap, tanh_of<L>(x));
        }
        if (a.mask != nullptr) {
            const auto mask = n >= kW ? L::load_halves(a.mask + t) : L::load_halves(a.mask + t, n);
            x = L::add(x, L::mul(slope, mask));
            x = L::select(L::equal(mask, masked), masked, x);  // whatever the score was, NaN included
        }
        if (n < kW) {
            x = L::select(L::first(n), x, masked);
        }
        L::store(a.scores + t, x);
    }
}

}  // namespace
}  // namespace mixed_kv::kernels::shared
