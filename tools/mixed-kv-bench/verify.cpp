#include "mixed-kv-bench/verify.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <stdexcept>

#include "mixed_kv/cold_format.h"
#include "mixed_kv/page.h"
#include "reference/attention_reference.h"
#include "reference/codec_reference.h"

namespace mixed_kv::tools {

namespace {

constexpr int kSamples = 4;

PageState state_from(std::int32_t api_state) {
    switch (api_state) {
        case MIXED_KV_CELL_HOT:
            return PageState::hot;
        case MIXED_KV_CELL_COLD:
            return PageState::cold;
        case MIXED_KV_CELL_PINNED:
            return PageState::pinned;
        default:
            return PageState::empty;
    }
}

// One head of one stream as double rows [n_kv][head_dim].
std::vector<double> stored_head(const mixed_kv_api& api, const ggml_tensor* t, KvRole role, int stream,
                                int head, const AttentionShape& shape) {
    mixed_kv_tensor_info info = {};
    if (api.tensor_info(t, &info) == 0) throw std::runtime_error("the plugin does not know its own tensor");
    std::vector<std::array<PageBlock, Page::kMaxBlocks - 1>> more(
        std::size_t((shape.n_kv + kPageTokens - 1) / kPageTokens));
    std::vector<Page> pages(std::size_t((shape.n_kv + kPageTokens - 1) / kPageTokens));
    for (std::size_t i = 0; i < pages.size(); ++i) {
        mixed_kv_page p = {};
        if (api.page(t, stream, std::int64_t(i), &p) == 0)
            throw std::runtime_error("the plugin shows no pages");
        pages[i].state = state_from(p.state);
        pages[i].written = p.written;
        pages[i].overlay = p.overlay;
        pages[i].data = static_cast<std::byte*>(const_cast<void*>(p.data));
        pages[i].overlay_rows = static_cast<fp16_t*>(const_cast<void*>(p.overlay_rows));
        pages[i].n_blocks = std::uint8_t(p.n_blocks);
        pages[i].more = more[i].data();
        for (int b = 0; b < p.n_blocks; ++b) {
            const mixed_kv_block& from = p.blocks[b];
            PageBlock& block = pages[i].block(b);
            block.data = static_cast<std::byte*>(const_cast<void*>(from.data));
            block.cells = from.cells;
            block.rotation = std::uint8_t(from.rotation);
            while (cold_formats()[block.format].code_bits != from.code_bits) ++block.format;
            block.head_bytes = std::uint32_t(cold_formats()[block.format].block_bytes(role, shape.head_dim));
        }
    }
    PageTable table;
    table.pages = pages.data();
    table.n_pages = std::int64_t(pages.size());
    table.layout.shape = {shape.n_head_kv, shape.head_dim};
    table.layout.role = role;
    table.layout.format = find_cold_format(info.format);
    table.layout.block_bytes = std::size_t(info.block_bytes);
    if (table.layout.format != nullptr)
        table.layout.format_index = int(table.layout.format - cold_formats().data());
    return reference::read_head(table, head, shape.n_kv);
}

}  // namespace

double relative_rms_allowed(bool any_cold) { return any_cold ? 2e-4 : 3e-5; }

double relative_rms(HostRuntime& runtime, const AttentionRig& rig, const AttentionShape& shape,
                    const AttentionData& data) {
    const mixed_kv_api& api = runtime.plugin().api();
    double error_squares = 0, squares = 0;
    for (int sample = 0; sample < kSamples; ++sample) {
        const auto pick = [&](std::int64_t n) { return n <= 1 ? 0 : sample * (n - 1) / (kSamples - 1); };
        const int stream = int(pick(shape.n_seq)), head = int(pick(shape.n_head));
        const std::int64_t query = pick(shape.n_q);
        const int head_kv = head / (shape.n_head / shape.n_head_kv);
        const std::vector<double> k = stored_head(api, rig.last_k(), KvRole::key, stream, head_kv, shape);
        const std::vector<double> v = stored_head(api, rig.last_v(), KvRole::value, stream, head_kv, shape);
        const auto dim = std::size_t(shape.head_dim);
        const std::size_t at =
            ((std::size_t(stream * shape.n_q + query) * shape.n_head) + std::size_t(head)) * dim;

        reference::AttentionInputs in;
        in.n_q = 1;
        in.n_kv = shape.n_kv;
        in.n_head = in.n_head_kv = 1;
        in.head_dim_k = in.head_dim_v = shape.head_dim;
        in.q = [&](int, std::int64_t, int, double* out) { std::copy_n(data.q.data() + at, dim, out); };
        in.k = [&](int, std::int64_t row, int, double* out) {
            std::copy_n(k.data() + std::size_t(row) * dim, dim, out);
        };
        in.v = [&](int, std::int64_t row, int, double* out) {
            std::copy_n(v.data() + std::size_t(row) * dim, dim, out);
        };
        in.mask.data = data.mask.data() + query * shape.n_kv;
        in.kq_scale = 1.0f / std::sqrt(float(shape.head_dim));
        const reference::AttentionOutputs expected = reference::attention(in);
        for (std::size_t d = 0; d < dim; ++d) {
            const double error = double(rig.output()[at + d]) - expected.o[d];
            error_squares += error * error;
            squares += expected.o[d] * expected.o[d];
        }
    }
    return std::sqrt(error_squares / squares);
}

}  // namespace mixed_kv::tools
