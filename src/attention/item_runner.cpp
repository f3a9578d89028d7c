#include "attention/item_runner.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>

#include "attention/page_access.h"

namespace mixed_kv::attention {

namespace {

// Fewer rows in a step than these would not pay for converting or unpacking a page for them.
constexpr int kStepRows = 64;

}  // namespace

void ItemRunner::run(const Item& item) noexcept {
    tile_ = &plan_.tiles()[std::size_t(item.tile)];
    take_rows(0, tile_->n_q);
    page_end_ = item.page_end;
    gather_q();
    run_pages(item, Values::any);
    if (!result_is_finite()) run_pages(item, Values::may_be_infinite);
}

void ItemRunner::run_pages(const Item& item, Values values_are) noexcept {
    clear_state();
    PageStep group[kernels::kMaxSoftmaxPages];
    int n = 0;
    for (std::int64_t page = item.page_begin; page < item.page_end; ++page) {
        const MaskPages::Kind kind = plan_.kind(*tile_, page);
        if (kind == MaskPages::hidden) continue;
        const PageStep step{page, int(std::min<std::int64_t>(kPageTokens, args_.n_kv - page * kPageTokens)),
                            &page_at(keys(), page), &page_at(values(), page), kind == MaskPages::mixed};
        if (step.mixed && args_.mask.data != nullptr && n_rows_ > kStepRows / 2) {
            run_mixed_page(step, values_are);
            continue;
        }
        group[n++] = step;
        if (n < sizes_.group_pages) continue;
        run_group(group, n, values_are);
        n = 0;
    }
    run_group(group, n, values_are);
    if (rotated_used_) {
        for (int row = 0; row < n_rows_; ++row) {
            float* rotated = s_.o_rotated + row * sizes_.o_stride;
            float* o = s_.o + row * sizes_.o_stride;
            set_.hadamard(rotated, args_.head_dim_v, sizes_.v_rotation);
            for (int d = 0; d < args_.head_dim_v; ++d) o[d] += rotated[d];
        }
    }
}

// All scores of the group's pages, one step of the softmax, then their values.
void ItemRunner::run_group(const PageStep* steps, int n, Values values_are) noexcept {
    if (n == 0) return;
    float* const first = s_.scores;
    const std::ptrdiff_t stride = page_stride();
    for (int i = 0; i < n; ++i) {
        s_.scores = first + i * stride;
        scores_of(steps[i]);
    }
    s_.scores = first;
    softmax(n);
    for (int i = 0; i < n; ++i) {
        s_.scores = first + i * stride;
        add_values_of(steps[i], values_are);
    }
    s_.scores = first;
}

void ItemRunner::scores_of(const PageStep& step) noexcept {
    if (step.k->state == PageState::empty) {
        std::fill_n(s_.scores, n_rows_ * kPageTokens, 0.0f);
    } else {
        stored_scores(step);
    }
    if (step.mixed || step.n_tokens < kPageTokens || args_.logit_softcap != 0.0f) logits(step);
}

void ItemRunner::add_values_of(const PageStep& step, Values values_are) noexcept {
    if (step.v->state == PageState::empty) return;  // zero values add nothing
    if (values_are == Values::may_be_infinite) {
        visible_values(step);
    } else if (args_.v_is_k && step.v->state == PageState::cold) {
        decoded_values(step);  // there is no kernel for p * K
    } else {
        stored_values(step);
    }
}

// Where the border of a causal mask or a window crosses a page, its queries go in steps of about kStepRows
// rows: each leaves out the queries that see nothing of the page, and the tokens after the last that is seen.
void ItemRunner::run_mixed_page(PageStep step, Values values_are) noexcept {
    const int n_tokens = step.n_tokens;
    const int queries_per_step = std::max(1, kStepRows / tile_->n_head);
    int first = -1, end = 0, tokens = 0;  // of the step: queries first .. end - 1
    const auto finish_step = [&] {
        if (first >= 0) {
            take_rows(first, end - first);
            step.n_tokens = tokens;
            run_group(&step, 1, values_are);
        }
        first = -1;
        tokens = 0;
    };
    for (int query = 0; query < tile_->n_q; ++query) {
        if (query % queries_per_step == 0) finish_step();
        const int seen = seen_tokens({step.page, n_tokens, step.k, step.v, step.mixed}, query);
        if (seen == 0) continue;
        if (first < 0) first = query;
        end = query + 1;
        tokens = std::max(tokens, seen);
    }
    finish_step();
    take_rows(0, tile_->n_q);
}

// Tokens of the page up to the last that the query sees, with any of the tile's heads.
int ItemRunner::seen_tokens(const PageStep& step, int query) const noexcept {
    int seen = 0;
    const int n_heads = args_.mask.n_head > 1 ? tile_->n_head : 1;
    for (int head = 0; head < n_heads; ++head) {
        const fp16_t* mask =
            args_.mask.row(tile_->stream, tile_->head0 + head, tile_->q0 + query) + step.page * kPageTokens;
        int t = step.n_tokens;
        while (t > seen && mask[t - 1] == kMaskedOut) --t;
        seen = t;
    }
    return seen;
}

// Restricts what follows to some queries of the tile.
void ItemRunner::take_rows(int first_query, int n_queries) noexcept {
    const std::ptrdiff_t first = std::ptrdiff_t(first_query) * tile_->n_head;
    first_query_ = first_query;
    n_queries_ = n_queries;
    n_rows_ = n_queries * tile_->n_head;
    q_turn_ = nullptr;
    s_ = all_;
    s_.q += first * sizes_.q_stride;
    s_.scores += first * kPageTokens;
    s_.o += first * sizes_.o_stride;
    s_.o_rotated += first * sizes_.o_stride;
    s_.m += first;
    s_.l += first;
    s_.rescale += first;
    s_.slope += first;
}

bool ItemRunner::result_is_finite() const noexcept {
    constexpr std::uint32_t kExponent = 0x7f800000u;
    for (int row = 0; row < n_rows_; ++row) {
        const float* o = s_.o + row * sizes_.o_stride;
        std::uint32_t not_finite = 0;
        for (int d = 0; d < args_.head_dim_v; ++d) {
            not_finite |= (std::bit_cast<std::uint32_t>(o[d]) & kExponent) == kExponent ? 1u : 0u;
        }
        if (not_finite != 0) return false;
    }
    return true;
}

// q as the kernels want it: contiguous, padded with zeros, kq_scale and 1 / logit_softcap applied (as ggml
// does). ALiBi slopes beside it.
void ItemRunner::gather_q() noexcept {
    const float scale = args_.logit_softcap != 0.0f ? args_.kq_scale / args_.logit_softcap : args_.kq_scale;
    const std::byte* base = reinterpret_cast<const std::byte*>(args_.q) +
                            tile_->stream * args_.q_stream_stride + tile_->q0 * args_.q_row_stride +
                            tile_->head0 * args_.q_head_stride;
    float* out = s_.q;
    float* slope = s_.slope;
    for (int query = 0; query < tile_->n_q; ++query) {
        for (int head = 0; head < tile_->n_head; ++head, out += sizes_.q_stride) {
            *slope++ =
                query == 0 ? alibi_slope(args_.max_bias, args_.n_head, tile_->head0 + head) : s_.slope[head];
            const std::byte* row = base + query * args_.q_row_stride + head * args_.q_head_stride;
            std::memcpy(out, row, std::size_t(args_.head_dim_k) * sizeof(float));
            for (int d = 0; d < args_.head_dim_k; ++d) out[d] *= scale;
            std::fill(out + args_.head_dim_k, out + sizes_.q_stride, 0.0f);
        }
    }
}

void ItemRunner::clear_state() noexcept {
    std::fill_n(s_.m, n_rows_, -std::numeric_limits<float>::infinity());
    std::fill_n(s_.l, n_rows_, 0.0f);
    std::fill_n(s_.o, n_rows_ * sizes_.o_stride, 0.0f);
    rotated_used_ = false;
}

void ItemRunner::logits(const PageStep& step) noexcept {
    int row = 0;
    for (int query = first_query_; query < first_query_ + n_queries_; ++query) {
        for (int head = 0; head < tile_->n_head; ++head, ++row) {
            const fp16_t* mask =
                step.mixed ? args_.mask.row(tile_->stream, tile_->head0 + head, tile_->q0 + query) : nullptr;
            set_.logits({s_.scores + row * kPageTokens, step.n_tokens,
                         mask == nullptr ? nullptr : mask + step.page * kPageTokens, s_.slope[row],
                         args_.logit_softcap});
        }
    }
}

void ItemRunner::softmax(int n_pages) noexcept {
    set_.softmax({s_.scores, n_rows_, s_.m, s_.l, s_.rescale, n_pages, page_stride()});
    for (int row = 0; row < n_rows_; ++row) {
        if (s_.rescale[row] == 1.0f) continue;
        set_.scale(s_.o + row * sizes_.o_stride, args_.head_dim_v, s_.rescale[row]);
        if (rotated_used_)
            set_.scale(s_.o_rotated + row * sizes_.o_stride, args_.head_dim_v, s_.rescale[row]);
    }
}

float* ItemRunner::value_sum(const Page& v) noexcept {
    if (v.state != PageState::cold || sizes_.v_rotation <= 1) return s_.o;
    if (!rotated_used_) std::fill_n(all_.o_rotated, tile_->n_rows() * sizes_.o_stride, 0.0f);
    rotated_used_ = true;
    return s_.o_rotated;
}

void scatter_columns(const float* packed, std::uint64_t tokens, int n_rows, float* scores) noexcept {
    int i = 0;
    for (std::uint64_t rest = tokens; rest != 0; rest &= rest - 1, ++i) {
        const int token = std::countr_zero(rest);
        for (int row = 0; row < n_rows; ++row)
            scores[row * kPageTokens + token] = packed[row * kPageTokens + i];
    }
}

void take_columns(const float* p, const PageBlock& block, int n_rows, float* out) noexcept {
    std::fill_n(out, n_rows * kPageTokens, 0.0f);
    for (std::uint64_t rest = block.cells; rest != 0; rest &= rest - 1) {
        const int token = std::countr_zero(rest), at = block.row_of(token);
        for (int row = 0; row < n_rows; ++row) out[row * kPageTokens + at] = p[row * kPageTokens + token];
    }
}

void extract_columns(float* p, std::uint64_t tokens, int n_rows, float* packed) noexcept {
    std::fill_n(packed, n_rows * kPageTokens, 0.0f);
    int i = 0;
    for (std::uint64_t rest = tokens; rest != 0; rest &= rest - 1, ++i) {
        const int token = std::countr_zero(rest);
        for (int row = 0; row < n_rows; ++row) {
            packed[row * kPageTokens + i] = p[row * kPageTokens + token];
            p[row * kPageTokens + token] = 0.0f;
        }
    }
}

}  // namespace mixed_kv::attention
