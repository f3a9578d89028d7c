#pragma once

#include "kernels/shared/fold.h"
#include "kernels/tiered_keys.h"

// qk and pv over cold pages with the integer scheme of src/kernels/scalar/cold.cpp: the drivers over tiles of
// query rows. A set supplies its tiles:
//
//   Lanes                     lane operations
//   put_integers<kRows>(out, words)   writes a vector of 16-bit integers of each row of a tile, kWordsBytes
//   in all kValuesApart              how far apart in the tokens of values the two halves of such a vector
//   lie start_shift(bits)         log2 of what its codes are above the centred ones; < 0: they are centred
//   Packed<bits>, Unpacked    codes as they are stored, and a byte each as unpack_*() leave them
//   unpack_keys<bits>(), unpack_values<bits>()
//   qk_rows<Codes, kRows>(), pv_rows<Codes, kRows>()   one pass over the page for a tile of rows
//   kQkTiles, kPvTilesPer16   how often a pass over a page (16 channels of it) calls ahead.tile()
namespace mixed_kv::kernels::shared {
namespace {

template <typename Set, typename Codes, int kBits>
inline void qk_all_rows(const QkArgs& a, const BlockLayout& l, const std::byte* codes, const Scratch& s,
                        Ahead<typename Set::Lanes> ahead) noexcept {
    constexpr int kStartShift = Set::start_shift(kBits);
    const int length = padded(a.keys.head_dim);
    const int limit = formats::q16_limit(kBits, a.keys.head_dim);
    const float noise = formats::score_noise(kBits, a.keys.head_dim);
    Pass pass;
    pass.integers = s.integers;
    for_row_tiles<kTileRows>(a.n_rows, [&](int r, auto rows) {
        constexpr int kRows = decltype(rows)::value;
        fold<Set, kStartShift, true, kRows>(s, a.q + r * a.q_stride, a.q_stride, length, limit, pass);
        const unsigned rest = noisy_rows<typename Set::Lanes>(pass, noise, kRows);
        float* scores = a.scores + std::ptrdiff_t(r) * kPage;
        Set::template qk_rows<Codes, kRows>(codes, l, pass, scores, a.accumulate, ahead);
        if (rest != 0) {
            fold_rest<Set, kStartShift, true, kRows>(s, length, limit, rest, pass);
            Set::template qk_rows<Codes, kRows>(codes, l, pass, scores, true, ahead);
        }
    });
}

// Over a block of that layout.
template <typename Set, int kBits>
void qk_uniform(const QkArgs& a, const BlockLayout& l) noexcept {
    using L = typename Set::Lanes;
    const Scratch s = place_scratch(a.scratch, a.keys.head_dim);
    prefetch_parameters<L>(a.keys.next, l);
    load_key_parameters<L, kBits>(a.keys.data, l, padded(a.keys.head_dim), s);
    Ahead<L> ahead(a.keys.next, l.byte_plane, l.bytes, Set::kQkTiles);
    if (a.n_rows < kUnpackRows) {
        qk_all_rows<Set, typename Set::template Packed<kBits>, kBits>(a, l, a.keys.data, s, ahead);
    } else {
        Set::template unpack_keys<kBits>(a.keys.data, l, s.codes);
        qk_all_rows<Set, typename Set::Unpacked, kBits>(a, l, s.codes, s, ahead);
    }
}

template <typename Set, int kBits>
void qk_tier(const QkArgs& a) noexcept {
    qk_uniform<Set, kBits>(a, formats::block_layout_of_tier(kBits, a.keys.head_dim));
}

template <typename Set, int kBits>
inline void qk_cold(const QkArgs& a) noexcept {
    if (!formats::is_tiered(true, kBits, a.keys.head_dim)) {
        qk_uniform<Set, kBits>(a, formats::block_layout(true, kBits, a.keys.head_dim));
        return;
    }
    static constexpr TierQk kTiers = {qk_tier<Set, 2>, qk_tier<Set, 3>, qk_tier<Set, 4>, qk_tier<Set, 6>,
                                      Set::fp16_to_fp32};
    // As many rows at a time as the scratch holds permuted.
    QkArgs some = a;
    for (int r = 0; r < a.n_rows; r += some.n_rows) {
        some.n_rows = a.n_rows - r < kMaxDecodeRows ? a.n_rows - r : kMaxDecodeRows;
        some.q = a.q + r * a.q_stride;
        some.scores = a.scores + std::ptrdiff_t(r) * kPage;
        qk_tiered(some, kTiers);
        some.keys.next = nullptr;  // fetched now
    }
}

template <typename Set, typename Codes, int kBits>
inline void pv_all_rows(const PvArgs& a, const BlockLayout& l, const std::byte* codes, const Scratch& s,
                        Ahead<typename Set::Lanes> ahead) noexcept {
    constexpr int kStartShift = Set::start_shift(kBits);
    const int limit = formats::q16_limit(kBits, kPage);
    Pass pass;
    pass.integers = s.integers;
    for_row_tiles<kTileRows>(a.n_rows, [&](int r, auto rows) {
        constexpr int kRows = decltype(rows)::value;
        fold<Set, kStartShift, false, kRows>(s, a.p + std::ptrdiff_t(r) * kPage, kPage, kPage, limit, pass);
        const unsigned rest = heavy_rows<typename Set::Lanes>(a, pass, r, kRows);
        float* o = a.o + r * a.o_stride;
        Set::template pv_rows<Codes, kRows>(codes, l, pass, s.offset, o, a.o_stride, ahead);
        if (rest != 0) {
            fold_rest<Set, kStartShift, false, kRows>(s, kPage, limit, rest, pass);
            Set::template pv_rows<Codes, kRows>(codes, l, pass, s.offset, o, a.o_stride, ahead);
        }
    });
}

template <typename Set, int kBits>
inline void pv_cold(const PvArgs& a) noexcept {
    using L = typename Set::Lanes;
    const BlockLayout l = formats::block_layout(false, kBits, a.values.head_dim);
    const Scratch s = place_scratch(a.scratch, a.values.head_dim);
    prefetch_parameters<L>(a.values.next, l);
    load_value_parameters<L>(a.values.data, l, s);
    Ahead<L> ahead(a.values.next, l.byte_plane, l.bytes, l.dim / 16 * Set::kPvTilesPer16);
    if (a.n_rows < kUnpackRows) {
        pv_all_rows<Set, typename Set::template Packed<kBits>, kBits>(a, l, a.values.data, s, ahead);
    } else {
        Set::template unpack_values<kBits>(a.values.data, l, s.codes);
        pv_all_rows<Set, typename Set::Unpacked, kBits>(a, l, s.codes, s, ahead);
    }
}

}  // namespace
}  // namespace mixed_kv::kernels::shared
