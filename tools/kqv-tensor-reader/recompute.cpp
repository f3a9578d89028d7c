#include "kqv-tensor-reader/recompute.h"

#include <algorithm>
#include <cmath>

#include "mixed_kv/error.h"
#include "mixed_kv/fp16.h"

namespace mixed_kv::trace_tools {

using trace::TraceRecord;

namespace {

void clear_invisible(const std::vector<uint8_t>& visible, int64_t row_values, std::vector<double>& rows) {
    for (size_t cell = 0; cell < visible.size(); ++cell) {
        if (visible[cell] == 0) std::fill_n(rows.begin() + int64_t(cell) * row_values, row_values, 0.0);
    }
}

}  // namespace

AttentionData attention_data(const TraceRecord& record) {
    if (!record.has_sources) {
        throw Error(place_text(record.layer, record.step) +
                    ": recorded without sources (--no-trace-sources), there is nothing to recompute from");
    }
    AttentionData data;
    data.n_tokens = record.n_tokens;
    data.n_head = record.n_head;
    data.n_head_kv = record.n_head_kv;
    data.n_kv = record.n_kv;
    data.n_stream = record.n_stream;
    data.head_dim_k = record.head_dim_k;
    data.head_dim_v = record.head_dim_v;
    data.kq_scale = double(record.kq_scale);
    data.max_bias = double(record.max_bias);
    data.logit_softcap = double(record.logit_softcap);
    data.q = to_floats(record.q);
    DensePart k = dense_part(record, Side::k);
    data.n_hot = k.n_hot;
    data.n_cold = k.n_cold;
    data.k = std::move(k.values);
    data.v = dense_part(record, Side::v).values;
    if (record.mask) {
        data.mask = to_floats(*record.mask);
        data.mask_rows = record.mask->ne[1];
        data.mask_heads = record.mask->ne[2];
        data.mask_streams = record.mask->ne[3];
        const std::vector<uint8_t> visible = visible_cells(record);
        clear_invisible(visible, data.n_head_kv * data.head_dim_k, data.k);
        clear_invisible(visible, data.n_head_kv * data.head_dim_v, data.v);
    }
    if (record.sinks) data.sinks = to_floats(*record.sinks);
    return data;
}

reference::AttentionOutputs attention_in_double(const AttentionData& data) {
    reference::AttentionInputs in;
    in.n_stream = int(data.n_stream);
    in.n_q = data.n_tokens;
    in.n_kv = data.n_kv;
    in.n_head = int(data.n_head);
    in.n_head_kv = int(data.n_head_kv);
    in.head_dim_k = int(data.head_dim_k);
    in.head_dim_v = int(data.head_dim_v);
    in.kq_scale = data.kq_scale;
    in.max_bias = data.max_bias;
    in.logit_softcap = data.logit_softcap;
    in.sinks = data.sinks.empty() ? nullptr : data.sinks.data();
    in.q = [&](int stream, int64_t token, int head, double* out) {
        const float* row =
            data.q.data() + ((stream * data.n_tokens + token) * data.n_head + head) * data.head_dim_k;
        std::copy_n(row, data.head_dim_k, out);
    };
    const auto reader = [&data](const std::vector<double>& rows, int64_t head_dim) {
        return [&data, &rows, head_dim](int stream, int64_t cell, int head, double* out) {
            const int64_t row = (stream * data.n_kv + cell) * data.n_head_kv + head;
            std::copy_n(rows.data() + row * head_dim, head_dim, out);
        };
    };
    in.k = reader(data.k, data.head_dim_k);
    in.v = reader(data.v, data.head_dim_v);

    std::vector<fp16_t> mask(data.mask.size());
    if (!data.mask.empty()) {
        for (size_t i = 0; i < mask.size(); ++i) {
            mask[i] = fp32_to_fp16(data.mask[i]);
            if (!(fp16_to_fp32(mask[i]) == data.mask[i]) && !std::isnan(data.mask[i])) {
                throw Error("the mask has the value " + std::to_string(data.mask[i]) +
                            ", which f16 cannot hold; such masks cannot be checked");
            }
        }
        const auto row_bytes = std::ptrdiff_t(data.n_kv * int64_t(sizeof(fp16_t)));
        in.mask = {.data = mask.data(),
                   .row_stride_bytes = row_bytes,
                   .head_stride_bytes = row_bytes * data.mask_rows,
                   .stream_stride_bytes = row_bytes * data.mask_rows * data.mask_heads,
                   .n_head = int(data.mask_heads),
                   .n_stream = int(data.mask_streams)};
    }
    return reference::attention(in);
}

}  // namespace mixed_kv::trace_tools
