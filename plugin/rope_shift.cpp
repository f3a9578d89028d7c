#include "rope_shift.h"

#include <algorithm>
#include <memory>
#include <vector>

#include "kv_buffer.h"

namespace mixed_kv::plugin {

ggml_status shift_keys(HostCpu& cpu, ggml_tensor* op) {
    KvBuffer& buffer = *KvBuffer::buffer_of(op);
    std::lock_guard<std::recursive_mutex> lock(buffer.mutex);
    KvEntry& entry = *KvBuffer::entry_of(op);
    const auto* shifts = static_cast<const std::int32_t*>(op->src[1]->data);
    const auto row_offset =
        std::size_t(static_cast<std::byte*>(op->data) - entry.base);  // partial rotations start mid-row
    const std::int64_t n_pages = (entry.n_cells + kPageTokens - 1) / kPageTokens;

    // One-node graph over a copy of the op that sees one page's rows.
    std::vector<std::uint8_t> memory(ggml_graph_overhead_custom(1, false) + ggml_tensor_overhead());
    const std::unique_ptr<ggml_context, decltype(&ggml_free)> ctx(
        ggml_init({memory.size(), memory.data(), true}), ggml_free);
    ggml_cgraph* graph = ggml_new_graph_custom(ctx.get(), 1, false);
    ggml_tensor page_op = *op, page_rows = *op->src[0], page_shifts = *op->src[1];
    for (ggml_tensor* t : {&page_op, &page_rows, &page_shifts}) {
        t->view_src = nullptr;
        t->buffer = nullptr;
    }
    page_op.src[0] = &page_rows;
    page_op.src[1] = &page_shifts;
    ggml_graph_add_node(graph, &page_op);

    ggml_status status = GGML_STATUS_SUCCESS;
    for (int stream = 0; stream < entry.n_stream; ++stream) {
        for (std::int64_t page = 0; page < n_pages && status == GGML_STATUS_SUCCESS; ++page) {
            const std::int64_t first = stream * entry.n_cells + page * kPageTokens;
            const std::int64_t n = std::min<std::int64_t>(kPageTokens, entry.n_cells - page * kPageTokens);
            if (std::all_of(shifts + first, shifts + first + n, [](std::int32_t s) { return s == 0; }))
                continue;
            entry.tensor->rewrite_page(stream, page, [&](fp16_t* rows, int n_rows, std::int64_t) {
                page_op.ne[2] = page_rows.ne[2] = page_shifts.ne[0] = n_rows;
                page_op.data = page_rows.data = reinterpret_cast<std::byte*>(rows) + row_offset;
                page_shifts.data = const_cast<std::int32_t*>(shifts + first);
                status = cpu.compute(graph, false);
            });
        }
    }
    return status;
}

}  // namespace mixed_kv::plugin
