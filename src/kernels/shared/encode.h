#pragma once

#include <limits>

#include "formats/codec.h"
#include "kernels/contract.h"
#include "kernels/shared/tiles.h"

// What the encoders of keys and values share. They write the bytes of src/formats/codec.cpp. As many scales
// are chosen at a time as a vector has lanes: neighbouring channels of keys (the sums run over tokens) or
// tokens of values (the sums run over channels). Every lane performs the scalar codec's float operations in
// its order, so the results are equal bit for bit; hence no FMA.
namespace mixed_kv::kernels::shared {
namespace {

using formats::BlockLayout;
using formats::ScaleForm;

constexpr std::uint16_t kNotFinite = 0x7c00;  // binary16 without sign, from here on

// The operands' order is that of the definition: equal zeros of different sign keep the second.
template <typename L>
inline typename L::F lower(typename L::F a, typename L::F b) noexcept {
    return L::select(L::less(a, b), a, b);
}
template <typename L>
inline typename L::F higher(typename L::F a, typename L::F b) noexcept {
    return L::select(L::less(b, a), a, b);
}

// Largest magnitude bits of the counted rows.
inline std::uint16_t largest_magnitude(const EncodeArgs& a) noexcept {
    std::uint16_t largest = 0;
    for (int t = 0; t < kPage; ++t) {
        if ((a.counted >> t & 1) == 0) {
            continue;
        }
        const std::uint16_t* row = a.rows + t * a.row_stride;
        for (int c = 0; c < a.head_dim; ++c) {
            const auto m = static_cast<std::uint16_t>(row[c] & 0x7fff);
            largest = m > largest ? m : largest;
        }
    }
    return largest;
}

// Scales and zero points, as stored and as floats; a code is (x - zero) * inverse + shift, rounded.
template <typename L>
struct Affine {
    typename L::H scale16, zero16;
    typename L::F zero, inverse, shift;
};

template <typename L>
inline Affine<L> make_affine(typename L::H scale16, typename L::H zero16, float shift) noexcept {
    const auto scale = L::from_halves(scale16);
    const auto positive = L::less(L::all(0.0f), scale);
    return {scale16, zero16, L::from_halves(zero16), L::keep(positive, L::div(L::all(1.0f), scale)),
            L::all(shift)};
}

// formats::coarse_scale() and byte_scale().
template <typename L>
inline typename L::H coarse_scale(typename L::H scale16) noexcept {
    return L::select_at_least(scale16, 0x0400, L::round_up_halves(scale16, 63), scale16);
}
template <typename L>
inline typename L::H byte_scale(typename L::H scale16) noexcept {
    return L::round_up_halves(scale16, 127);
}

// The position on the scale of codes, and clamped: NaN becomes 0.
template <typename L>
inline typename L::F position(typename L::F x, const Affine<L>& a) noexcept {
    return L::add(L::mul(L::sub(x, a.zero), a.inverse), a.shift);
}
template <typename L>
inline typename L::F clamp_code(typename L::F t, typename L::F max_code) noexcept {
    return L::min(L::max(t, L::all(0.0f)), max_code);
}

// Squared errors, in units of the squared step, of kCount candidates at once: the passes over x are what
// costs.
template <typename L, int kCount>
inline void candidate_errors(const float* x, const std::uint8_t* index, int n, typename L::F max_code,
                             const Affine<L>* candidates, typename L::F* errors) noexcept {
    typename L::F error[kCount];
    unroll<kCount>([&](auto k) { error[k.value] = L::all(0.0f); });
    for (int i = 0; i < n; ++i) {
        const auto v = L::load(x + (index != nullptr ? index[i] : i) * L::kWidth);
        unroll<kCount>([&](auto k) {
            const auto t = position<L>(v, candidates[k.value]);
            const auto e = L::sub(t, L::round(clamp_code<L>(t, max_code)));
            error[k.value] = L::add(error[k.value], L::mul(e, e));
        });
    }
    unroll<kCount>([&](auto k) { errors[k.value] = error[k.value]; });
}

// candidate_of() of the scalar codec.
template <typename L, int kBits, bool kSymmetric, ScaleForm kForm>
inline Affine<L> candidate_of(typename L::F middle, typename L::F reach) noexcept {
    constexpr float kMaxCode = static_cast<float>((1 << kBits) - 1);
    constexpr float kShift = kSymmetric ? formats::middle_code(kBits) : 0.0f;
    const auto scale16 = L::to_halves(L::mul(reach, L::all(2.0f / kMaxCode)));
    if constexpr (kSymmetric) {
        return make_affine<L>(kForm == ScaleForm::byte ? byte_scale<L>(scale16) : coarse_scale<L>(scale16),
                              L::no_halves(), kShift);
    } else if constexpr (kForm == ScaleForm::half) {
        return make_affine<L>(scale16, L::to_halves(L::sub(middle, reach)), kShift);
    } else {
        const auto rounded = byte_scale<L>(scale16);
        const auto below = L::mul(L::from_halves(rounded), L::all(kMaxCode * 0.5f));
        const auto zero = higher<L>(L::sub(middle, below), L::all(formats::kLowestZero));
        return make_affine<L>(rounded, L::to_halves(zero), kShift);
    }
}

// choose_affine() of the scalar codec for the lanes of x[i][kWidth]; index lists the n values to use,
// nullptr: all.
template <typename L, int kBits, bool kSymmetric, ScaleForm kForm>
inline Affine<L> choose_affine(const float* x, const std::uint8_t* index, int n) noexcept {
    constexpr formats::ClipFactors clips = formats::clip_factors(!kSymmetric, kBits, kForm);
    constexpr float kShift = kSymmetric ? formats::middle_code(kBits) : 0.0f;
    const auto infinity = L::all(std::numeric_limits<float>::infinity());
    if (n == 0) {
        return make_affine<L>(L::no_halves(), L::no_halves(), kShift);
    }
    auto lo = infinity, hi = L::neg(infinity);
    for (int i = 0; i < n; ++i) {
        const auto v = L::load(x + (index != nullptr ? index[i] : i) * L::kWidth);
        lo = lower<L>(v, lo);
        hi = higher<L>(v, hi);
    }
    if constexpr (kSymmetric) {
        hi = higher<L>(L::neg(lo), hi);
        lo = L::neg(hi);
    }
    const auto one_half = L::all(0.5f);
    const auto lo_half = L::mul(lo, one_half), hi_half = L::mul(hi, one_half);
    const auto middle = L::add(lo_half, hi_half), half = L::sub(hi_half, lo_half);
    Affine<L> candidates[clips.count];
    for (int k = 0; k < clips.count; ++k) {
        candidates[k] =
            candidate_of<L, kBits, kSymmetric, kForm>(middle, L::mul(half, L::all(clips.factor[k])));
    }
    if constexpr (clips.count == 1) {
        return candidates[0];
    } else {
        static_assert(clips.count % 3 == 0);
        const auto max_code = L::all(static_cast<float>((1 << kBits) - 1));
        typename L::F errors[clips.count];
        for (int k = 0; k < clips.count; k += 3) {
            candidate_errors<L, 3>(x, index, n, max_code, candidates + k, errors + k);
        }
        Affine<L> best = candidates[0];
        auto best_error = infinity;
        for (int k = 0; k < clips.count; ++k) {
            const auto scale = L::from_halves(candidates[k].scale16);
            const auto scaled = L::mul(errors[k], L::mul(scale, scale));
            const auto error = L::select(L::less(L::all(0.0f), scale), scaled, infinity);
            if (k == 0) {
                best_error = error;
                continue;
            }
            const auto better = L::less(error, best_error);
            best_error = L::select(better, error, best_error);
            best.scale16 = L::select(better, candidates[k].scale16, best.scale16);
            best.zero16 = L::select(better, candidates[k].zero16, best.zero16);
        }
        return make_affine<L>(best.scale16, best.zero16, kShift);
    }
}

// The codes of x[kWidth] as integers.
template <typename L>
inline typename L::I code_of(const float* x, const Affine<L>& affine, typename L::F max_code) noexcept {
    return L::to_int(clamp_code<L>(position<L>(L::load(x), affine), max_code));
}

// As many scales as a vector has lanes, from index `first` on.
template <typename L, ScaleForm kForm>
inline void store_scales(std::byte* block, int first, typename L::H scale16) noexcept {
    if constexpr (kForm == ScaleForm::byte) {
        L::store_byte_scales(block + first, scale16);
    } else {
        L::store_h(block + std::size_t(first) * 2, scale16);
    }
}

// Tokens that take part in choosing scales; list: null for all of them.
struct Counted {
    int n = 0;
    std::uint8_t index[kPage];
    const std::uint8_t* list() const noexcept { return n == kPage ? nullptr : index; }
};

inline void list_counted(std::uint64_t counted, Counted& tokens) noexcept {
    for (int t = 0; t < kPage; ++t) {
        if ((counted >> t & 1) == 0) continue;
        tokens.index[tokens.n++] = static_cast<std::uint8_t>(t);
    }
}

struct Spreads {
    float ranges[kMaxHeadDim], means[kMaxHeadDim], gaps[kMaxHeadDim];
};

// The smallest difference but 0 of two sampled rows, in kWidth channels from rows + c on; infinite if there
// is none.
template <typename L>
inline typename L::F smallest_gap(const EncodeArgs& a, const Counted& tokens, int c) noexcept {
    typename L::F x[formats::kSampledRows];
    for (int i = 0; i < formats::kSampledRows; ++i) {
        x[i] = L::load_halves(a.rows + tokens.index[i * tokens.n / formats::kSampledRows] * a.row_stride + c);
    }
    auto smallest = L::all(std::numeric_limits<float>::infinity());
    for (int i = 1; i < formats::kSampledRows; ++i) {
        for (int j = 0; j < i; ++j) {
            const auto gap = L::abs(L::sub(x[i], x[j]));
            smallest = L::select(L::less(L::all(0.0f), gap), L::min(gap, smallest), smallest);
        }
    }
    return smallest;
}

// spread_of() of the scalar codec for every channel; head_dim is a multiple of 16.
template <typename L>
inline void find_spreads(const EncodeArgs& a, const Counted& tokens, Spreads& spreads) noexcept {
    const auto infinity = L::all(std::numeric_limits<float>::infinity());
    const auto share = L::all(1.0f / static_cast<float>(tokens.n > 0 ? tokens.n : 1));
    for (int c = 0; c < a.head_dim; c += L::kWidth) {
        auto lo = infinity, hi = L::neg(infinity), sum = L::all(0.0f);
        for (int i = 0; i < tokens.n; ++i) {
            const auto v = L::load_halves(a.rows + tokens.index[i] * a.row_stride + c);
            lo = lower<L>(v, lo);
            hi = higher<L>(v, hi);
            sum = L::add(sum, v);
        }
        const auto range = tokens.n > 0 ? L::sub(hi, lo) : L::all(0.0f);
        L::store(spreads.ranges + c, range);
        L::store(spreads.means + c, L::mul(sum, share));
        auto gap = L::all(0.0f);
        if (tokens.n >= formats::kSampledRows) {
            gap = smallest_gap<L>(a, tokens, c);
            gap = L::select(L::equal(gap, infinity), range, gap);
        }
        L::store(spreads.gaps + c, gap);
    }
}

// Rotates x[n][kWidth tokens] along n: see rotate() of the scalar codec.
template <typename L>
inline void rotate(float* x, int n, int size) noexcept {
    constexpr int kW = L::kWidth;
    if (size == 1) {
        return;
    }
    const auto norm = L::all(formats::hadamard_norm(size));
    for (float* group = x; group < x + n * kW; group += size * kW) {
        int h = 1;
        for (; h * 4 <= size; h *= 4) {  // two distances at once: half the loads and stores, the same sums
            const bool last = h * 4 == size;
            for (int i = 0; i < size; i += 4 * h) {
                for (int j = i; j < i + h; ++j) {
                    float* p = group + j * kW;
                    const auto a = L::load(p), b = L::load(p + h * kW);
                    const auto c = L::load(p + 2 * h * kW), d = L::load(p + 3 * h * kW);
                    const auto a1 = L::add(a, b), b1 = L::sub(a, b);
                    const auto c1 = L::add(c, d), d1 = L::sub(c, d);
                    const typename L::F y[4] = {L::add(a1, c1), L::add(b1, d1), L::sub(a1, c1),
                                                L::sub(b1, d1)};
                    for (int k = 0; k < 4; ++k) {
                        L::store(p + k * h * kW, last ? L::mul(y[k], norm) : y[k]);
                    }
                }
            }
        }
        if (h < size) {
            for (int j = 0; j < h; ++j) {
                float* p = group + j * kW;
                const auto a = L::load(p), b = L::load(p + h * kW);
                L::store(p, L::mul(L::add(a, b), norm));
                L::store(p + h * kW, L::mul(L::sub(a, b), norm));
            }
        }
    }
}

// The means of the counted rows, rotated, as floats and as stored: rotated_means() of the definition over
// sums in its order. Returns the number of rows.
template <typename L>
inline int means_of_rows(const EncodeArgs& a, float* rotated, std::uint16_t* means) noexcept {
    int n_rows = 0;
    for (int c = 0; c < a.head_dim; c += L::kWidth) {
        const int n = a.head_dim - c < L::kWidth ? a.head_dim - c : L::kWidth;
        auto sum = L::all(0.0f);
        n_rows = 0;
        for (int t = 0; t < kPage; ++t) {
            if ((a.counted >> t & 1) == 0) {
                continue;
            }
            ++n_rows;
            const std::uint16_t* row = a.rows + t * a.row_stride + c;
            sum = L::add(sum, n == L::kWidth ? L::load_halves(row) : L::load_halves(row, n));
        }
        L::store(rotated + c, sum);
    }
    (void)formats::rotated_means(rotated, a.head_dim, n_rows, means);
    return n_rows;
}

// residuals[channel][kWidth] += scale * (code - shift) of as many tokens.
template <typename L>
inline void add_residuals(const float* x, int n, const Affine<L>& affine, typename L::F max_code,
                          float* residuals, int stride) noexcept {
    const auto scale = L::from_halves(affine.scale16);
    for (int c = 0; c < n; ++c) {
        const auto code = L::round(clamp_code<L>(position<L>(L::load(x + c * L::kWidth), affine), max_code));
        const auto add = L::mul(L::sub(code, affine.shift), scale);
        float* to = residuals + c * stride;
        L::store(to, L::add(L::load(to), add));
    }
}

// Whether the definition has to decide: rotation grows a value at most sqrt(size) times and the difference
// from a mean is at most twice as large, beyond binary16's range perhaps. Scales and means surely fit below
// 2048 (sizes to 64) or 256 (to 1024).
inline bool may_leave_binary16(std::uint16_t largest, int size) noexcept {
    constexpr std::uint16_t kSafe[] = {0x7800, 0x6800, 0x5c00};  // 32768, 2048, 256
    return largest > kSafe[size == 1 ? 0 : size <= 64 ? 1 : 2];
}

}  // namespace
}  // namespace mixed_kv::kernels::shared
