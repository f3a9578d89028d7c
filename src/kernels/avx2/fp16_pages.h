#pragma once

#include "kernels/avx2/avx2.h"
#include "kernels/avx2/simd.h"

// FP16 pages with few query rows (fp16_pages.cpp) and with many (fp16_blocks.cpp).
namespace mixed_kv::kernels::avx2 {

// From here on converting a page once costs less than converting it for every few rows.
inline constexpr int kBlockRows = 16;

// Scores of the first tokens, a multiple of 16 of them: returns how many.
int qk_f16_blocks(const QkArgs& args, std::ptrdiff_t to_next) noexcept;
void pv_f16_blocks(const PvArgs& args, std::ptrdiff_t to_next) noexcept;

namespace {

// From a byte of this page to the same byte of the next one, 0 if it is not known or pages are not
// contiguous: this page is then fetched again, which costs less than to ask.
inline std::ptrdiff_t distance_to_next(const PageData& page) noexcept {
    if (page.next == nullptr || page.token_stride_bytes != std::ptrdiff_t(page.head_dim) * 2) {
        return 0;
    }
    return static_cast<std::ptrdiff_t>(reinterpret_cast<std::uintptr_t>(page.next) -
                                       reinterpret_cast<std::uintptr_t>(page.data));
}

// To L2: one page and its query rows fill L1.
inline void fetch(const std::byte* page, std::ptrdiff_t offset) noexcept {
    _mm_prefetch(reinterpret_cast<const char*>(reinterpret_cast<std::uintptr_t>(page) +
                                               static_cast<std::uintptr_t>(offset)),
                 _MM_HINT_T1);
}

}  // namespace
}  // namespace mixed_kv::kernels::avx2
