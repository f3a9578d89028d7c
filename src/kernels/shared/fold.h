#pragma once

#include "formats/block_layout.h"
#include "kernels/contract.h"
#include "kernels/shared/tiles.h"

// Folds a page's scales and offsets into query (or probability) rows: the integers that codes are multiplied
// with, and the floats beside them. The integers are those of the scalar kernels. Rows are prepared one
// register tile at a time: what a row needs of latency (the largest magnitude, a division) is then shared,
// and the tile's integers are still in L1 when they are used.
namespace mixed_kv::kernels::shared {
namespace {

using formats::BlockLayout;
using formats::ScaleForm;

// The integers of one pass over the page for one tile of rows: q * scale (or p * scale), or what the first
// pass left out of it.
struct Pass {
    std::byte* integers;                   // in the set's own order, see Set::put_integers
    alignas(16) float inverse[kTileRows];  // integers per unit of the rows
    alignas(16) float step[kTileRows];     // and the reverse
    alignas(16) float constant[kTileRows];
    alignas(16) float weight[kTileRows];        // of the channels' offsets, values only
    alignas(16) std::int32_t start[kTileRows];  // what the codes are above the centred ones, in their sums
};

constexpr int padded(int n) { return formats::round_up(n, 16); }

// The scratch of one call. The summed axis, padded(head_dim) channels of keys or the tokens of values, is
// `length` long.
struct Scratch {
    float* scale;         // of the summed axis [length]
    float* offset;        // [dim]: keys: what the centre stands for; values: the channels' offsets
    float* scaled;        // rows of a tile [kTileRows][length]
    std::byte* integers;  // theirs, 16 bits each
    std::byte* codes;     // of the page, a byte each, if it is unpacked [dim][64]
};

constexpr std::ptrdiff_t longer_axis(int head_dim) {
    return padded(head_dim) > kPage ? padded(head_dim) : kPage;
}

inline Scratch place_scratch(std::byte* scratch, int head_dim) noexcept {
    const std::ptrdiff_t n = longer_axis(head_dim);
    Scratch s;
    s.scale = reinterpret_cast<float*>(scratch);
    s.offset = s.scale + n;
    s.scaled = s.offset + n;
    s.integers = reinterpret_cast<std::byte*>(s.scaled + kTileRows * n);
    s.codes = s.integers + kTileRows * n * 2;
    return s;
}

// Without what tiered keys take.
constexpr std::size_t scratch_bytes(int head_dim) {
    const auto n = static_cast<std::size_t>(longer_axis(head_dim));
    const std::size_t codes = static_cast<std::size_t>(padded(head_dim)) * kPage;
    return (n * ((2 + kTileRows) * sizeof(float) + kTileRows * 2) + codes + 63) / 64 * 64;
}

template <typename Lanes>
inline void load_scales(const std::byte* block, ScaleForm form, int length, float* scale) noexcept {
    constexpr int kW = Lanes::kWidth;
    if (form == ScaleForm::byte) {
        for (int c = 0; c < length; c += kW) Lanes::store(scale + c, Lanes::load_byte_scales(block + c));
    } else {
        for (int c = 0; c < length; c += kW) {
            Lanes::store(scale + c, Lanes::load_halves(block + std::size_t(c) * 2));
        }
    }
}

template <typename Lanes, int kBits>
inline void load_key_parameters(const std::byte* block, const BlockLayout& l, int length,
                                const Scratch& s) noexcept {
    load_scales<Lanes>(block, l.scale_form, length, s.scale);
    const auto centre = Lanes::all(static_cast<float>(formats::code_centre(kBits)));
    for (int c = 0; c < length; c += Lanes::kWidth) {
        const auto zero = Lanes::load_halves(block + l.offsets + std::size_t(c) * 2);
        Lanes::store(s.offset + c, Lanes::fma(Lanes::load(s.scale + c), centre, zero));
    }
}

template <typename Lanes>
inline void load_value_parameters(const std::byte* block, const BlockLayout& l, const Scratch& s) noexcept {
    load_scales<Lanes>(block, l.scale_form, kPage, s.scale);
    for (int c = 0; c < l.dim; c += Lanes::kWidth) {
        Lanes::store(s.offset + c, Lanes::load_halves(block + l.offsets + std::size_t(c) * 2));
    }
}

// Rounds kRows rows of length values to 16 bits; lane r of largest is row r's largest magnitude. The scalar
// kernels clamp as well, which matters only for NaN; the row's constant carries it to the result.
template <typename Set, int kStartShift, bool kIsKey, int kRows>
inline void round_rows(const float* scaled, int length, typename Set::Lanes::F largest, int limit,
                       Pass& pass) noexcept {
    using L = typename Set::Lanes;
    const auto bound = L::all(static_cast<float>(limit));
    const auto nonzero = L::less(L::all(1e-30f), largest);
    L::store(pass.inverse, L::keep(nonzero, L::div(bound, largest)));
    L::store(pass.step, L::keep(nonzero, L::div(largest, bound)));
    typename L::I sums[kRows];
    typename L::F factor[kRows];
    unroll<kRows>([&](auto r) {
        sums[r.value] = L::no_sum();
        factor[r.value] = L::all(pass.inverse[r.value]);
    });
    // A vector of words holds two vectors of the summed axis: neighbours, or as far apart as the set
    // multiplies them together.
    constexpr int kApart = kIsKey ? L::kWidth : Set::kValuesApart;
    std::byte* out = pass.integers;
    for (int first = 0; first < length; first += 2 * kApart) {
        for (int c = first; c < first + kApart; c += L::kWidth, out += Set::kWordsBytes) {
            typename L::Words words[kRows];
            unroll<kRows>([&](auto r) {
                const float* x = scaled + std::ptrdiff_t(r.value) * length + c;
                const auto a = L::to_int(L::mul(L::load(x), factor[r.value]));
                const auto b = L::to_int(L::mul(L::load(x + kApart), factor[r.value]));
                words[r.value] = L::words(a, b);
                if constexpr (kStartShift >= 0) sums[r.value] = L::add_words(sums[r.value], words[r.value]);
            });
            Set::template put_integers<kRows>(out, words);
        }
    }
    if constexpr (kStartShift >= 0) {
        const auto total = L::template sum_each<kRows>(sums);
        L::store(pass.start, L::neg(L::template shifted_left<kStartShift>(total)));
    } else {
        L::store(pass.start, L::no_sum());
    }
}

// Folds the page's scales, and its offsets if it holds keys, into kRows rows of x and rounds them; length is
// a multiple of 16.
template <typename Set, int kStartShift, bool kIsKey, int kRows>
inline void fold(const Scratch& s, const float* x, std::ptrdiff_t stride, int length, int limit,
                 Pass& pass) noexcept {
    using L = typename Set::Lanes;
    typename L::F largest[kRows], constant[kRows], weight[kRows];
    unroll<kRows>([&](auto r) { largest[r.value] = constant[r.value] = weight[r.value] = L::all(0.0f); });
    for (int c = 0; c < length; c += L::kWidth) {
        const auto scale = L::load(s.scale + c);
        const auto offset = kIsKey ? L::load(s.offset + c) : scale;
        unroll<kRows>([&](auto r) {
            const auto value = L::load(x + r.value * stride + c);
            const auto product = L::mul(value, scale);
            L::store(s.scaled + std::ptrdiff_t(r.value) * length + c, product);
            if constexpr (kIsKey) {
                largest[r.value] = L::max(L::abs(product), largest[r.value]);
                constant[r.value] = L::fma(value, offset, constant[r.value]);
            } else {  // neither weights nor their scales are negative
                largest[r.value] = L::max(product, largest[r.value]);
                constant[r.value] = L::add(product, constant[r.value]);
                weight[r.value] = L::add(value, weight[r.value]);
            }
        });
    }
    const auto row_constant = L::template sum_each<kRows>(constant);
    if constexpr (kIsKey) {
        L::store(pass.constant, row_constant);
        L::store(pass.weight, L::all(0.0f));
    } else {
        L::store(pass.constant, L::mul(row_constant, L::all(formats::kCentreAboveMiddle)));
        L::store(pass.weight, L::template sum_each<kRows>(weight));
    }
    round_rows<Set, kStartShift, kIsKey, kRows>(s.scaled, length, L::template max_each<kRows>(largest), limit,
                                                pass);
}

// Replaces the pass by what it left out of the rows of the mask; the other rows' integers become 0. Product
// and difference are rounded one after the other as in the scalar kernels.
template <typename Set, int kStartShift, bool kIsKey, int kRows>
inline void fold_rest(const Scratch& s, int length, int limit, unsigned rows, Pass& pass) noexcept {
    using L = typename Set::Lanes;
    typename L::F largest[kRows];
    unroll<kRows>([&](auto row) {
        constexpr int r = decltype(row)::value;
        largest[r] = L::all(0.0f);
        const auto factor = L::all(pass.inverse[r]), unit = L::all(pass.step[r]);
        for (int c = 0; c < length; c += L::kWidth) {
            float* x = s.scaled + std::ptrdiff_t(r) * length + c;
            const auto value = L::load(x);
            const auto done = L::to_float(L::to_int(L::mul(value, factor)));
            auto rest = L::sub(value, L::mul(done, unit));
            if ((rows >> r & 1u) == 0) rest = L::all(0.0f);
            L::store(x, rest);
            largest[r] = L::max(L::abs(rest), largest[r]);
        }
    });
    L::store(pass.constant, L::all(0.0f));
    L::store(pass.weight, L::all(0.0f));
    round_rows<Set, kStartShift, kIsKey, kRows>(s.scaled, length, L::template max_each<kRows>(largest), limit,
                                                pass);
}

// Rows of a tile whose scores would be off by more than 16 bits allow.
template <typename Lanes>
inline unsigned noisy_rows(const Pass& pass, float noise, int n_rows) noexcept {
    const auto error = Lanes::mul(Lanes::load(pass.step), Lanes::all(noise));
    return Lanes::mask_bits(Lanes::less(Lanes::all(formats::kScoreNoiseAllowed), error)) &
           ((1u << n_rows) - 1u);
}

// Rows of a tile in which one token of the page holds more of the row's weight than 16 bits resolve.
template <typename Lanes>
inline unsigned heavy_rows(const PvArgs& a, const Pass& pass, int r0, int n_rows) noexcept {
    unsigned rows = 0;
    for (int r = 0; r < n_rows; ++r) {
        const float allowed = a.mass == nullptr ? 0.0f : formats::kMassShareAllowed * a.mass[r0 + r];
        // The largest weight is at most their sum, which rounding does not change: weights are not negative.
        if (pass.weight[r] <= allowed) continue;
        auto largest = Lanes::all(0.0f);
        for (int t = 0; t < kPage; t += Lanes::kWidth) {
            largest = Lanes::max(Lanes::load(a.p + std::ptrdiff_t(r0 + r) * kPage + t), largest);
        }
        if (Lanes::max_of(largest) > allowed) rows |= 1u << r;
    }
    return rows;
}

// What turns one row's sums into floats, loaded before anything is stored.
template <typename Lanes>
struct RowFactors {
    typename Lanes::F step, constant, weight;
    RowFactors(const Pass& pass, int r) noexcept
        : step(Lanes::all(pass.step[r])),
          constant(Lanes::all(pass.constant[r])),
          weight(Lanes::all(pass.weight[r])) {}
};

// Scores of kWidth tokens from their sums; add: on top of what is there.
template <typename Lanes>
inline __attribute__((always_inline)) void write_scores(float* out, typename Lanes::I sums,
                                                        const RowFactors<Lanes>& row, bool add) noexcept {
    auto score = Lanes::fma(Lanes::to_float(sums), row.step, row.constant);
    if (add) score = Lanes::add(Lanes::load(out), score);
    Lanes::store(out, score);
}

// Adds the weighted values of kWidth channels to o.
template <typename Lanes>
inline __attribute__((always_inline)) void add_values(float* o, typename Lanes::I sums,
                                                      const RowFactors<Lanes>& row,
                                                      const float* offset) noexcept {
    const auto rest = Lanes::fma(Lanes::load(offset), row.weight, row.constant);
    const auto part = Lanes::fma(Lanes::to_float(sums), row.step, rest);
    Lanes::store(o, Lanes::add(Lanes::load(o), part));
}

// Asks for the scales and offsets of the next page, and before that for a line of each 4 KiB of it: the walks
// of the page tables overlap.
template <typename Lanes>
inline void prefetch_parameters(const std::byte* next, const BlockLayout& l) noexcept {
    if (next == nullptr) return;
    for (std::size_t at = 4096; at < l.bytes; at += 4096) {
        Lanes::prefetch(next + at);
    }
    Lanes::prefetch(next + l.bytes - 1);
    for (std::size_t at = 0; at < l.byte_plane; at += kPrefetchLine) {
        Lanes::prefetch(next + at);
    }
}

}  // namespace
}  // namespace mixed_kv::kernels::shared
