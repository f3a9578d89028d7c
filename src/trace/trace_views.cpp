// Views: the numbers by which an op addressed its sources must lead from the origin's memory to the tensor
// recorded.
#include <charconv>
#include <optional>
#include <string_view>

#include "mixed_kv/error.h"
#include "trace/text.h"
#include "trace/trace_schema.h"

namespace mixed_kv::trace {
namespace {

class ViewCheck {
  public:
    // type, ne: what the record's own numbers say that the op saw.
    ViewCheck(const TraceRecord& record, const char* name, const SourceView& view, GgmlType type,
              const Shape& ne)
        : r_(record), name_(name), view_(view), type_(type), ne_(ne) {}

    void run() {
        if (!view_.present) {
            return;
        }
        require(view_.type == type_ && view_.ne == ne_, [&] {
            return cat("sees ", type_text(view_.type), " ", shape_text(view_.ne), ", recorded is ",
                       type_text(type_), " ", shape_text(ne_));
        });
        require(view_.order == axis_order(view_.ne, view_.nb),
                [&] { return cat("order ", numbers(view_.order), " does not follow from its strides"); });
        check_overlap();
        if (view_.origin_name.empty()) {
            require(view_.nb == contiguous_strides(type_, ne_) && view_.view_offs == 0,
                    [&] { return std::string("a tensor of its own is not contiguous"); });
            return;
        }
        require(view_.origin_type == type_, [&] {
            return cat("is ", type_text(type_), " of an origin of type ", type_text(view_.origin_type));
        });
        for (const int64_t n : view_.origin_ne) {
            require(n >= 1, [&] { return cat("its origin has the shape ", numbers(view_.origin_ne)); });
        }
        require(view_.origin_nb == contiguous_strides(type_, view_.origin_ne), [&] {
            return cat("its origin's strides do not fit the shape ", shape_text(view_.origin_ne));
        });
        check_inside();
    }

    // Index along each of the origin's dimensions at which the view begins.
    Shape start() const {
        Shape start{};
        int64_t left = view_.view_offs;
        for (size_t d = 4; d-- > 0;) {
            start[d] = left / view_.origin_nb[d];
            left %= view_.origin_nb[d];
        }
        return start;
    }

  private:
    template <typename Text>
    void require(bool right, Text text) const {
        if (!right) {
            throw Error(cat("layer ", r_.layer, ", step ", r_.step, ", ", name_, ": its view ", text()));
        }
    }

    static std::string type_text(GgmlType type) {
        const GgmlTypeInfo* info = find_ggml_type(static_cast<int32_t>(type));
        return info != nullptr ? info->name : "unknown";
    }

    static std::string numbers(const Shape& shape) {
        return cat("(", shape[0], ", ", shape[1], ", ", shape[2], ", ", shape[3], ")");
    }

    // Along each dimension, ggml steps over all that the dimensions closer together take, or over more.
    void check_overlap() const {
        const GgmlTypeInfo& info = ggml_type_info(type_);
        int64_t taken = info.block_bytes;
        for (const int64_t dim : view_.order) {
            const auto d = static_cast<size_t>(dim);
            const int64_t nb = view_.nb[d];
            // What a dimension of one element steps over is of no use, but it is one of these too.
            require(nb >= info.block_bytes && nb % info.block_bytes == 0,
                    [&] { return cat("steps over ", nb, " bytes, no multiple of an element"); });
            if (ne_[d] <= 1) {
                continue;
            }
            const int64_t n = d == 0 ? ne_[0] / info.block_values : ne_[d];
            require(nb >= taken, [&] { return cat("has strides ", numbers(view_.nb), " that overlap"); });
            int64_t next = 0;
            require(!__builtin_mul_overflow(nb, n, &next),
                    [&] { return std::string("has strides beyond 2^63"); });
            taken = next;
        }
    }

    // A dimension of one element steps over all that lies in one or more of the others.
    bool is_boundary(int64_t nb) const {
        const GgmlTypeInfo& info = ggml_type_info(type_);
        bool found = nb == info.block_bytes || nb == view_.origin_nb[3] * view_.origin_ne[3];
        for (size_t d = 0; d < 4; ++d) {
            const int64_t n = d == 0 ? ne_[0] / info.block_values : ne_[d];
            found = found || nb == view_.origin_nb[d] || nb == view_.nb[d] * n * (n > 1 ? 1 : 0);
        }
        return found;
    }

    // Every step of the view is a whole number of steps of its origin, and none leaves it.
    void check_inside() const {
        const GgmlTypeInfo& info = ggml_type_info(type_);
        Shape length = view_.origin_ne;
        length[0] /= info.block_values;
        require(view_.view_offs >= 0 && view_.view_offs % info.block_bytes == 0 &&
                    view_.view_offs < length[3] * view_.origin_nb[3],
                [&] { return cat("begins at byte ", view_.view_offs); });
        Shape reach = start();
        for (size_t d = 0; d < 4; ++d) {
            const int64_t n = d == 0 ? ne_[0] / info.block_values : ne_[d];
            if (n <= 1) {
                require(is_boundary(view_.nb[d]), [&] {
                    return cat("steps over ", view_.nb[d], " bytes along a dimension of one element");
                });
                continue;
            }
            size_t along = 3;
            while (along > 0 && (view_.origin_nb[along] > view_.nb[d] || length[along] == 1)) {
                --along;
            }
            const int64_t step = view_.nb[d] / view_.origin_nb[along];
            require(view_.nb[d] % view_.origin_nb[along] == 0, [&] {
                return cat("steps over ", view_.nb[d], " bytes, which is no step of its origin");
            });
            reach[along] += step * (n - 1);
        }
        for (size_t d = 0; d < 4; ++d) {
            // No host has origins of four dimensions and takes a part of the last.
            require(d < 3 ? reach[d] < length[d] : reach[d] + 1 == length[d], [&] {
                return cat("leaves its origin ", shape_text(view_.origin_ne), " along dimension ", d,
                           ", or does not fill it");
            });
        }
    }

    const TraceRecord& r_;
    const char* name_;
    const SourceView& view_;
    GgmlType type_;
    Shape ne_;
};

// The graph's own names carry the layer: "Qcur-3 (view)". A record under another layer's number is refused.
void check_layer_names(const TraceRecord& r, const SourceView& view, std::string_view prefix) {
    for (const std::string& name : {view.name, view.origin_name}) {
        const size_t at = name.find(prefix);
        if (at == std::string::npos) {
            continue;
        }
        const char* first = name.data() + at + prefix.size();
        int32_t layer = 0;
        const auto result = std::from_chars(first, name.data() + name.size(), layer);
        if (result.ec == std::errc() && layer != r.layer) {
            throw Error(cat("layer ", r.layer, ", step ", r.step, ": a tensor is named ", in_quotes(name),
                            ", which is another layer's"));
        }
    }
}

// A cache is seen from its first cell and whole rows, K and V in the same stream.
void check_cache_start(const TraceRecord& r, const ViewCheck& k, const ViewCheck& v) {
    if (r.k_view.origin_name.empty() || r.v_view.origin_name.empty()) {
        return;
    }
    const Shape k_start = k.start(), v_start = v.start();
    if (k_start[0] != 0 || k_start[1] != 0 || (v_start[0] != 0 && !r.v_is_view_of_k) || v_start[1] != 0 ||
        k_start[2] != v_start[2]) {
        throw Error(cat("layer ", r.layer, ", step ", r.step, ": its views of K and V begin at ",
                        shape_text(k_start), " and ", shape_text(v_start),
                        " of the cache, not at a stream's first cell"));
    }
}

}  // namespace

void validate_views(const TraceRecord& r) {
    ViewCheck(r, "kqv_out", r.kqv_out_view, GgmlType::f32, {r.head_dim_v, r.n_head, r.n_tokens, r.n_stream})
        .run();
    check_layer_names(r, r.kqv_out_view, "__fattn__-");
    check_layer_names(r, r.kqv_out_view, "kqv_out-");
    const auto absent = [&r](const char* name, const SourceView& view) {
        if (view.present) {
            throw Error(
                cat("layer ", r.layer, ", step ", r.step, ", ", name, ": a view of what is not recorded"));
        }
    };
    if (!r.has_sources) {
        for (const SourceView* view : {&r.q_view, &r.k_view, &r.v_view, &r.mask_view, &r.sinks_view}) {
            absent("sources", *view);
        }
        return;
    }
    ViewCheck(r, "q", r.q_view, GgmlType::f32, {r.head_dim_k, r.n_tokens, r.n_head, r.n_stream}).run();
    ViewCheck k(r, "k", r.k_view, r.k.rows.type, {r.head_dim_k, r.n_kv, r.n_head_kv, r.n_stream});
    ViewCheck v(r, "v", r.v_view, r.v_is_view_of_k ? r.k.rows.type : r.v.rows.type,
                {r.head_dim_v, r.n_kv, r.n_head_kv, r.n_stream});
    k.run();
    v.run();
    check_cache_start(r, k, v);
    check_layer_names(r, r.q_view, "Qcur-");
    const auto optional = [&](const char* name, const SourceView& view,
                              const std::optional<TensorData>& tensor) {
        if (tensor) {
            ViewCheck(r, name, view, tensor->type, tensor->ne).run();
        } else {
            absent(name, view);
        }
    };
    optional("mask", r.mask_view, r.mask);
    optional("sinks", r.sinks_view, r.sinks);
}

}  // namespace mixed_kv::trace
