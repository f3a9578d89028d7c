#include "support/faults.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>

#include "mixed_kv/attention_state.h"

namespace mixed_kv::test {

namespace {

using Output = std::vector<float>;
using kernels::KernelSet;

bool always(const CaseSpec&) { return true; }
bool several_pages(const CaseSpec& c) { return c.n_kv > 2 * kPageTokens; }

// Tables of args with their pages changed by change(std::vector<Page>&).
class ChangedTables {
  public:
    template <typename Change>
    ChangedTables(const PageTable* tables, int n_stream, Change change) {
        for (int stream = 0; stream < n_stream; ++stream) {
            pages_.emplace_back(tables[stream].pages, tables[stream].pages + tables[stream].n_pages);
            for (Page& page : pages_.back()) {  // blocks of their own, to be changed
                if (page.more == nullptr) continue;
                more_.push_back(std::make_unique<PageBlock[]>(Page::kMaxBlocks - 1));
                std::copy_n(page.more, Page::kMaxBlocks - 1, more_.back().get());
                page.more = more_.back().get();
            }
            change(pages_.back());
            tables_.push_back(
                {pages_.back().data(), std::int64_t(pages_.back().size()), tables[stream].layout});
        }
    }
    const PageTable* data() const { return tables_.data(); }

  private:
    std::vector<std::vector<Page>> pages_;
    std::vector<std::unique_ptr<PageBlock[]>> more_;
    std::vector<PageTable> tables_;
};

Output last_token_dropped(AttentionCase& c, const KernelSet& set) {
    AttentionArgs args = c.args();
    --args.n_kv;
    return c.run(set, args);
}

Output mask_ignored(AttentionCase& c, const KernelSet& set) {
    AttentionArgs args = c.args();
    args.mask = {};
    return c.run(set, args);
}

Output sinks_ignored(AttentionCase& c, const KernelSet& set) {
    AttentionArgs args = c.args();
    args.sinks = nullptr;
    return c.run(set, args);
}

Output softcap_ignored(AttentionCase& c, const KernelSet& set) {
    AttentionArgs args = c.args();
    args.logit_softcap = 0.0f;
    return c.run(set, args);
}

Output scale_of_another_head_dim(AttentionCase& c, const KernelSet& set) {
    AttentionArgs args = c.args();
    args.kq_scale = 1.0f / std::sqrt(float(c.spec().head_dim_k + 8));
    return c.run(set, args);
}

// Query head h reads KV head h % n_head_kv.
Output wrong_gqa_head(AttentionCase& c, const KernelSet& set) {
    const CaseSpec& spec = c.spec();
    const int n_gqa = spec.n_head / spec.n_head_kv;
    const auto seat = [&](int head) { return head % spec.n_head_kv * n_gqa + head / spec.n_head_kv; };
    AttentionArgs args = c.args();
    std::vector<float> q = c.q_data();  // [n_stream][n_head][...]
    const std::size_t size = q.size() / std::size_t(spec.n_stream * spec.n_head);
    for (int stream = 0; stream < spec.n_stream; ++stream) {
        for (int head = 0; head < spec.n_head; ++head) {
            const auto at = [&](int h) {
                return std::ptrdiff_t(std::size_t(stream * spec.n_head + h) * size);
            };
            std::copy_n(c.q_data().begin() + at(head), size, q.begin() + at(seat(head)));
        }
    }
    args.q = q.data();
    const Output seated = c.run(set, args);
    Output out(seated.size());
    const auto dim = std::size_t(spec.head_dim_v);
    for (std::size_t row = 0; row < c.n_rows(); ++row) {
        const auto head = int(row % std::size_t(spec.n_head));
        const std::size_t from = row - std::size_t(head) + std::size_t(seat(head));
        std::copy_n(seated.begin() + std::ptrdiff_t(from * dim), dim,
                    out.begin() + std::ptrdiff_t(row * dim));
    }
    return out;
}

// Two halves of the cells, merged by lse in base 2 as if it were natural.
Output log2_lse(AttentionCase& c, const KernelSet&) {
    AttentionArgs first = c.args(), second = c.args();
    const std::int64_t n_pages = c.spec().n_kv / kPageTokens / 2 + 1;
    first.n_kv = n_pages * kPageTokens;
    second.n_kv -= first.n_kv;
    const auto later_pages = [&](std::vector<Page>& pages) {
        pages.erase(pages.begin(), pages.begin() + n_pages);
    };
    const ChangedTables k(second.k, second.n_stream, later_pages), v(second.v, second.n_stream, later_pages);
    second.k = k.data();
    second.v = v.data();
    if (second.mask.data != nullptr) second.mask.data += first.n_kv;
    second.sinks = nullptr;
    const reference::AttentionOutputs a = c.reference_of(first), b = c.reference_of(second);

    const auto dim = std::size_t(c.spec().head_dim_v);
    Output out(c.n_rows() * dim);
    for (std::size_t row = 0; row < c.n_rows(); ++row) {
        constexpr float kLog2E = 1.44269504f;
        const MergeWeights w = merge_weights(kLog2E * float(a.lse[row]), kLog2E * float(b.lse[row]));
        for (std::size_t i = row * dim; i < (row + 1) * dim; ++i) {
            out[i] = float(double(w.a) * a.o[i] + double(w.b) * b.o[i]);
        }
    }
    return out;
}

// Values of each page taken from the next.
Output off_by_one_page(AttentionCase& c, const KernelSet& set) {
    AttentionArgs args = c.args();
    const ChangedTables v(args.v, args.n_stream, [](std::vector<Page>& pages) {
        // Not the last page: its storage may end early.
        std::rotate(pages.begin(), pages.begin() + 1, pages.end() - 1);
    });
    args.v = v.data();
    args.v_is_k = false;
    return c.run(set, args);
}

Output overlay_ignored(AttentionCase& c, const KernelSet& set) {
    AttentionArgs args = c.args();
    const auto drop = [](std::vector<Page>& pages) {
        for (Page& page : pages) page.overlay = 0;
    };
    const ChangedTables k(args.k, args.n_stream, drop), v(args.v, args.n_stream, drop);
    args.k = k.data();
    args.v = v.data();
    return c.run(set, args);
}

// Rows taken for those of the cells at their places, although a block has them elsewhere.
Output places_of_rows_ignored(AttentionCase& c, const KernelSet& set) {
    AttentionArgs args = c.args();
    const auto forget = [](std::vector<Page>& pages) {
        for (Page& page : pages) {
            for (int i = 0; i < page.n_blocks; ++i) page.block(i).rotation = 0;
        }
    };
    const ChangedTables k(args.k, args.n_stream, forget), v(args.v, args.n_stream, forget);
    args.k = k.data();
    args.v = v.data();
    return c.run(set, args);
}

// Only the first block of a page read.
Output further_blocks_ignored(AttentionCase& c, const KernelSet& set) {
    AttentionArgs args = c.args();
    const auto drop = [](std::vector<Page>& pages) {
        for (Page& page : pages) page.n_blocks = std::min<std::uint8_t>(page.n_blocks, 1);
    };
    const ChangedTables k(args.k, args.n_stream, drop), v(args.v, args.n_stream, drop);
    args.k = k.data();
    args.v = v.data();
    return c.run(set, args);
}

// Cold values summed, but not rotated back.
Output rotation_forgotten(AttentionCase& c, const KernelSet& set) {
    Output out = c.run(set);
    const int dim = c.spec().head_dim_v;
    for (std::size_t row = 0; row < c.n_rows(); ++row) {
        set.hadamard(out.data() + row * std::size_t(dim), dim, hadamard_size(dim));
    }
    return out;
}

// Two neighbouring output rows swapped.
Output rows_swapped(AttentionCase& c, const KernelSet& set) {
    Output out = c.run(set);
    const int dim = c.spec().head_dim_v;
    std::swap_ranges(out.begin(), out.begin() + dim, out.begin() + dim);
    return out;
}

Output nan_in_one_lane(AttentionCase& c, const KernelSet& set) {
    Output out = c.run(set);
    out[out.size() / 2] = std::numeric_limits<float>::quiet_NaN();
    return out;
}

Output infinity_in_one_lane(AttentionCase& c, const KernelSet& set) {
    Output out = c.run(set);
    out.back() = std::numeric_limits<float>::infinity();
    return out;
}

}  // namespace

const std::vector<Fault>& seeded_faults() {
    static const std::vector<Fault> faults = {
        {"last token dropped", last_token_dropped, always},
        {"mask ignored", mask_ignored, [](const CaseSpec& c) { return c.mask != MaskForm::none; }},
        {"sinks ignored", sinks_ignored, [](const CaseSpec& c) { return c.sinks; }},
        {"soft-cap ignored", softcap_ignored, [](const CaseSpec& c) { return c.logit_softcap != 0.0f; }},
        {"scale of another head_dim", scale_of_another_head_dim, always},
        {"wrong GQA head", wrong_gqa_head,
         [](const CaseSpec& c) { return c.n_head_kv > 1 && c.n_head > c.n_head_kv; }},
        {"log2 LSE", log2_lse, several_pages},
        {"off-by-one page", off_by_one_page, [](const CaseSpec& c) { return several_pages(c) && !c.v_is_k; }},
        {"overlay ignored", overlay_ignored,
         [](const CaseSpec& c) { return c.k_mix == PageMix::cold_overlay && c.k_format != nullptr; }},
        {"further blocks ignored", further_blocks_ignored,
         [](const CaseSpec& c) { return c.k_mix == PageMix::blocks; }},
        {"places of rows ignored", places_of_rows_ignored,
         [](const CaseSpec& c) { return c.k_mix == PageMix::blocks; }},
        {"rotation forgotten", rotation_forgotten,
         [](const CaseSpec& c) { return c.v_format != nullptr && c.v_mix != PageMix::hot; }},
        {"rows swapped", rows_swapped, [](const CaseSpec& c) { return c.n_head * c.n_q > 1; }},
        {"NaN in one lane", nan_in_one_lane, always},
        {"infinity in one lane", infinity_in_one_lane, always},
    };
    return faults;
}

}  // namespace mixed_kv::test
