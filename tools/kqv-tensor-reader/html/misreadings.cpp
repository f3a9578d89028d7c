#include "kqv-tensor-reader/html/misreadings.h"

#include <algorithm>
#include <cmath>
#include <optional>

#include "kqv-tensor-reader/html/weights.h"
#include "kqv-tensor-reader/trace_values.h"

namespace mixed_kv::trace_tools {

using trace::Shape;
using trace::SourceView;

namespace {

// Bytes of a row along the view's first dimension.
int64_t row_bytes(const SourceView& view) {
    return int64_t(trace::tensor_bytes(view.type, {view.ne[0], 1, 1, 1}));
}

// The view's element at a byte counted from its start, dimension `first` and up; none between two elements or
// outside the view.
std::optional<Shape> element_at(const SourceView& view, int64_t byte, size_t first) {
    std::vector<size_t> dims;
    for (size_t d = first; d < 4; ++d) {
        if (view.ne[d] > 1) dims.push_back(d);
    }
    std::sort(dims.begin(), dims.end(), [&](size_t a, size_t b) { return view.nb[a] > view.nb[b]; });
    Shape at{0, 0, 0, 0};
    for (const size_t d : dims) {
        if (view.nb[d] <= 0) return std::nullopt;
        at[d] = byte / view.nb[d];
        if (at[d] >= view.ne[d]) return std::nullopt;
        byte -= at[d] * view.nb[d];
    }
    return byte == 0 ? std::optional(at) : std::nullopt;
}

// Place of an element in an array [ne3][ne1][ne2][ne0].
int64_t place(const SourceView& view, const Shape& at) {
    return ((at[3] * view.ne[1] + at[1]) * view.ne[2] + at[2]) * view.ne[0] + at[0];
}

double distance(const std::vector<double>& a, const std::vector<double>& b) {
    double squares = 0, of_b = 0;
    for (size_t i = 0; i < b.size(); ++i) {
        squares += (a[i] - b[i]) * (a[i] - b[i]);
        of_b += b[i] * b[i];
    }
    return squares == 0 ? 0 : std::sqrt(squares / of_b);
}

std::vector<double> output_of(const AttentionData& data, int64_t stream, int64_t token) {
    std::vector<double> out;
    for (int64_t head = 0; head < data.n_head; ++head) {
        const std::vector<double> row =
            weighted_values(data, stream, head, attention_weights(data, stream, token, head));
        out.insert(out.end(), row.begin(), row.end());
    }
    return out;
}

}  // namespace

bool is_contiguous(const SourceView& view) {
    const trace::GgmlTypeInfo& type = trace::ggml_type_info(view.type);
    // A view's numbers are only text of the file: they may be larger than any tensor.
    int64_t expected = type.block_bytes;
    for (size_t d = 0; d < 4; ++d) {
        if (view.ne[d] > 1 && view.nb[d] != expected) return false;
        const int64_t length = d == 0 ? view.ne[0] / type.block_values : view.ne[d];
        if (__builtin_mul_overflow(expected, length, &expected)) return false;
    }
    return true;
}

template <typename T>
std::vector<T> read_as_contiguous(const std::vector<T>& values, const SourceView& view) {
    if (!view.present) return {};
    int64_t n = 1;
    for (const int64_t length : view.ne) {
        if (length <= 0 || n > int64_t(values.size()) / length) return {};
        n *= length;
    }
    if (n != int64_t(values.size())) return {};
    const trace::GgmlTypeInfo& type = trace::ggml_type_info(view.type);
    if (view.ne[0] % type.block_values != 0) return {};
    // Whole rows keep together where rows are contiguous and every step is one of whole rows.
    const int64_t row = row_bytes(view);
    bool by_rows = view.nb[0] == type.block_bytes || view.ne[0] == 1;
    for (size_t d = 1; d < 4; ++d) by_rows = by_rows && (view.ne[d] == 1 || view.nb[d] % row == 0);
    if (!by_rows && type.block_values != 1) return {};
    std::vector<T> misread(values.size(), T(0));
    int64_t byte = 0;
    for (Shape at{0, 0, 0, 0}; at[3] < view.ne[3]; ++at[3]) {
        for (at[2] = 0; at[2] < view.ne[2]; ++at[2]) {
            for (at[1] = 0; at[1] < view.ne[1]; ++at[1]) {
                at[0] = 0;
                if (by_rows) {
                    if (const auto source = element_at(view, byte, 1)) {
                        std::copy_n(values.begin() + place(view, *source), view.ne[0],
                                    misread.begin() + place(view, at));
                    }
                    byte += row;
                    continue;
                }
                for (; at[0] < view.ne[0]; ++at[0], byte += type.block_bytes) {
                    if (const auto source = element_at(view, byte, 0)) {
                        misread[size_t(place(view, at))] = values[size_t(place(view, *source))];
                    }
                }
            }
        }
    }
    return misread;
}

template std::vector<float> read_as_contiguous(const std::vector<float>&, const SourceView&);
template std::vector<double> read_as_contiguous(const std::vector<double>&, const SourceView&);

std::vector<Misreading> misreadings(const trace::TraceRecord& record, const AttentionData& data,
                                    const std::vector<double>& out, int64_t stream, int64_t token) {
    const int64_t row_values = data.n_head * data.head_dim_v;
    const int64_t first = (stream * data.n_tokens + token) * row_values;
    const std::vector<float> all_recorded = to_floats(record.kqv_out);
    const std::vector<double> recorded(all_recorded.begin() + first,
                                       all_recorded.begin() + first + row_values);
    std::vector<Misreading> found;
    const auto add = [&](std::string what, std::vector<double> output) {
        const std::vector<double>& right = found.empty() ? output : found.front().output;
        const double from_right = distance(output, right), of_recorded = distance(recorded, output);
        found.push_back({std::move(what), std::move(output), from_right, of_recorded});
    };
    add("nothing", {out.begin() + first, out.begin() + first + row_values});

    // Of cells that nobody sees the data hold zeros; whoever misreads finds what is stored.
    const auto misread_side = [&](Side side, const SourceView& view) {
        return !view.present || is_contiguous(view)
                   ? std::vector<double>()
                   : read_as_contiguous(dense_part(record, side).values, view);
    };
    const std::vector<double> k = misread_side(Side::k, record.k_view),
                              v = misread_side(Side::v, record.v_view);
    const std::vector<float> q = !record.q_view.present || is_contiguous(record.q_view)
                                     ? std::vector<float>()
                                     : read_as_contiguous(data.q, record.q_view);
    const auto with = [&](const char* what, bool use_q, bool use_k, bool use_v) {
        if ((use_q && q.empty()) || (use_k && k.empty()) || (use_v && v.empty())) return;
        AttentionData misread = data;
        if (use_q) misread.q = q;
        if (use_k) misread.k = k;
        if (use_v) misread.v = v;
        add(what, output_of(misread, stream, token));
    };
    with("k", false, true, false);
    with("v", false, false, true);
    with("k and v", false, true, true);
    with("q", true, false, false);
    with("q, k and v", true, true, true);
    if (data.n_tokens > 1 && data.n_head > 1) {
        // Written as [head_dim, tokens, heads]: the row at (token, head) is another one's.
        std::vector<double> written;
        for (int64_t head = 0; head < data.n_head; ++head) {
            const int64_t row = token * data.n_head + head;
            const int64_t from =
                (stream * data.n_tokens + row % data.n_tokens) * data.n_head + row / data.n_tokens;
            written.insert(written.end(), out.begin() + from * data.head_dim_v,
                           out.begin() + (from + 1) * data.head_dim_v);
        }
        add("kqv_out", std::move(written));
    }
    return found;
}

}  // namespace mixed_kv::trace_tools
