// Where an unpacked page and its rows lie in the scratch.

#include "kernels/avx2/cold_blocks.h"

#include "kernels/avx2/avx2.h"
#include "kernels/avx2/fold.h"
#include "kernels/tiered_keys.h"

namespace mixed_kv::kernels::avx2 {

UnpackedPage place_unpacked(std::byte* scratch, int n_columns, int n_summed) noexcept {
    UnpackedPage page;
    page.n_columns = n_columns;
    page.n_pairs = n_summed / 2;
    page.codes = reinterpret_cast<IntPair*>(scratch);
    page.scale = reinterpret_cast<float*>(page.codes + std::ptrdiff_t(n_columns) * page.n_pairs);
    page.offset = page.scale + n_summed;
    page.rows = reinterpret_cast<std::byte*>(page.offset + (n_columns > n_summed ? n_columns : n_summed));
    return page;
}

namespace {

std::size_t unpacked_bytes(int head_dim) noexcept {
    const auto dim = static_cast<std::size_t>(padded(head_dim));
    const std::size_t longer = dim > kPage ? dim : kPage;
    return dim * kPage * sizeof(std::int16_t) + 2 * longer * sizeof(float) +
           kRowsAtOnce * longer * (sizeof(float) + sizeof(std::int16_t));
}

}  // namespace

std::size_t scratch_bytes(int head_dim) noexcept {
    const std::size_t few = fold_bytes(padded(head_dim) > kPage ? padded(head_dim) : kPage);
    const std::size_t many = unpacked_bytes(head_dim);
    return permuted_bytes(head_dim, kMaxDecodeRows) + ((few > many ? few : many) + 63) / 64 * 64;
}

}  // namespace mixed_kv::kernels::avx2
