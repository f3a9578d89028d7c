// Values decoded to float first: where no kernel takes them as they are stored.
#include <algorithm>
#include <bit>

#include "attention/item_runner.h"
#include "attention/page_access.h"

namespace mixed_kv::attention {

// The values of one page as float rows, in the basis of the page's block, overlay rows included.
void ItemRunner::values_to_float(const PageStep& step) noexcept {
    const PageTable& table = values();
    const Page& page = *step.v;
    if (is_fp16(page)) {
        set_.decode_f16({fp16_data(table, page, tile_->head_kv, args_.head_dim_v, step.n_tokens), s_.values,
                         sizes_.v_stride, false});
        return;
    }
    // A key block decodes whole rows, also where V is narrower.
    decode_blocks(page, args_.v_is_k ? args_.head_dim_k : args_.head_dim_v);
    if (page.shift_groups != 0) turn_decoded_keys(page, step.page);
    if (page.overlay == 0) return;
    const kernels::PageData overlay = overlay_data(table, page, tile_->head_kv, args_.head_dim_v);
    const std::byte* row = overlay.data;
    for (std::uint64_t rest = page.overlay; rest != 0; rest &= rest - 1, row += overlay.token_stride_bytes) {
        float* out = s_.values + std::countr_zero(rest) * sizes_.v_stride;
        set_.fp16_to_fp32(reinterpret_cast<const fp16_t*>(row), out, args_.head_dim_v);
        if (sizes_.v_rotation > 1) set_.hadamard(out, args_.head_dim_v, sizes_.v_rotation);
    }
}

// The rows of a cold page's blocks at their cells; cells that have none read as zero.
void ItemRunner::decode_blocks(const Page& page, int width) noexcept {
    const PageTable& table = values();
    const auto decode = [&](const PageBlock& block, float* out) {
        const kernels::FormatKernels& format = set_.formats[block.format];
        (args_.v_is_k ? format.decode_key : format.decode_value)(
            {block_data(table, block, tile_->head_kv, width), out, sizes_.v_stride, false});
    };
    if (page.is_plain()) {
        decode(page.first, s_.values);
        return;
    }
    std::fill_n(s_.values, sizes_.v_stride * kPageTokens, 0.0f);
    for (int i = 0; i < page.n_blocks; ++i) {
        const PageBlock& block = page.block(i);
        decode(block, s_.block);
        for (std::uint64_t rest = block.cells; rest != 0; rest &= rest - 1) {
            const int t = std::countr_zero(rest);
            std::copy_n(s_.block + block.row_of(t) * sizes_.v_stride, width, s_.values + t * sizes_.v_stride);
        }
    }
}

// o += p * V of one page.
void ItemRunner::decoded_values(const PageStep& step) noexcept {
    values_to_float(step);
    set_.gemm({s_.scores, kPageTokens, s_.values, sizes_.v_stride, value_sum(*step.v), sizes_.o_stride,
               n_rows_, args_.head_dim_v, kPageTokens, true});
}

// The same, leaving out cells of weight 0. Slow, for pages that hold rows which are not finite.
void ItemRunner::visible_values(const PageStep& step) noexcept {
    values_to_float(step);
    float* sum = value_sum(*step.v);
    for (int row = 0; row < n_rows_; ++row) {
        for (int t = 0; t < kPageTokens; ++t) {
            const float p = s_.scores[row * kPageTokens + t];
            if (p == 0.0f) continue;
            float* o = sum + row * sizes_.o_stride;
            const float* v = s_.values + t * sizes_.v_stride;
            for (int d = 0; d < args_.head_dim_v; ++d) o[d] += p * v[d];
        }
    }
}

}  // namespace mixed_kv::attention
