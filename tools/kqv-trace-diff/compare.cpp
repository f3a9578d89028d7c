#include "kqv-trace-diff/compare.h"

#include <algorithm>
#include <cmath>
#include <sstream>

#include "kqv-tensor-reader/trace_values.h"

namespace mixed_kv::trace_tools {

using trace::TensorData;
using trace::TraceRecord;

namespace {

// Differences of values, taken one by one. NaN in one only, or in both, makes the figures NaN, which no
// tolerance accepts; equal infinities (masks) are no difference.
class Accumulator {
  public:
    void add(double a, double b) {
        ++n_;
        if (a == b && std::isinf(a)) return;
        const double difference = std::fabs(a - b);
        if (!(difference <= max_)) max_ = std::isnan(max_) ? max_ : difference;
        if (std::isfinite(a)) largest_ = std::max(largest_, std::fabs(a));
        squares_ += difference * difference;
        aa_ += a * a;
        bb_ += b * b;
        ab_ += a * b;
    }

    void finish(TensorDifference& d) const {
        d.n = n_;
        d.max_absolute = max_;
        d.max_relative = max_ == 0 ? 0 : max_ / largest_;
        d.rmse = std::sqrt(squares_ / double(std::max<int64_t>(1, n_)));
        d.cosine = aa_ == 0 && bb_ == 0 ? 1 : ab_ / std::sqrt(aa_ * bb_);
    }

  private:
    int64_t n_ = 0;
    double max_ = 0, largest_ = 0, squares_ = 0, aa_ = 0, bb_ = 0, ab_ = 0;
};

class Comparer {
  public:
    Comparer(const TraceRecord& a, const TraceRecord& b) : a_(a), b_(b) {}

    std::vector<TensorDifference> run() {
        compare_numbers();
        compare_tensor("kqv_out", &a_.kqv_out, &b_.kqv_out);
        if (a_.has_sources != b_.has_sources) {
            mismatch("sources", a_.has_sources ? "A has them, B has not" : "B has them, A has not");
        }
        if (!a_.has_sources || !b_.has_sources) return std::move(result_);
        compare_tensor("q", &a_.q, &b_.q);
        compare_side("k", Side::k);
        compare_side("v", Side::v);
        compare_tensor("mask", a_.mask ? &*a_.mask : nullptr, b_.mask ? &*b_.mask : nullptr);
        compare_tensor("sinks", a_.sinks ? &*a_.sinks : nullptr, b_.sinks ? &*b_.sinks : nullptr);
        return std::move(result_);
    }

  private:
    void mismatch(const std::string& tensor, const std::string& what) {
        TensorDifference difference;
        difference.tensor = tensor;
        difference.mismatch = what;
        result_.push_back(std::move(difference));
    }

    void note(const std::string& tensor, const std::string& what) {
        mismatch(tensor, what);
        result_.back().note = true;
    }

    template <typename T>
    void compare_number(const char* name, T a, T b) {
        if (a == b) return;
        std::ostringstream text;
        text << a << " in A, " << b << " in B";
        mismatch(name, text.str());
    }

    void compare_numbers() {
        compare_number("n_tokens", a_.n_tokens, b_.n_tokens);
        compare_number("n_head", a_.n_head, b_.n_head);
        compare_number("n_head_kv", a_.n_head_kv, b_.n_head_kv);
        compare_number("n_kv", a_.n_kv, b_.n_kv);
        compare_number("n_stream", a_.n_stream, b_.n_stream);
        compare_number("head_dim_k", a_.head_dim_k, b_.head_dim_k);
        compare_number("head_dim_v", a_.head_dim_v, b_.head_dim_v);
        compare_number("kq_scale", a_.kq_scale, b_.kq_scale);
        compare_number("max_bias", a_.max_bias, b_.max_bias);
        compare_number("logit_softcap", a_.logit_softcap, b_.logit_softcap);
        compare_number("position", a_.position, b_.position);
    }

    void compare_tensor(const char* name, const TensorData* a, const TensorData* b) {
        if (a == nullptr && b == nullptr) return;
        if (a == nullptr || b == nullptr) {
            mismatch(name, a == nullptr ? "only B has it" : "only A has it");
            return;
        }
        if (a->type != b->type) {
            mismatch(name, std::string("type ") + trace::ggml_type_info(a->type).name + " in A, " +
                               trace::ggml_type_info(b->type).name + " in B");
        }
        if (a->ne != b->ne) {
            mismatch(name,
                     "shape " + trace::shape_text(a->ne) + " in A, " + trace::shape_text(b->ne) + " in B");
            return;
        }
        const std::vector<float> va = to_floats(*a), vb = to_floats(*b);
        Accumulator sums;
        for (size_t i = 0; i < va.size(); ++i) sums.add(double(va[i]), double(vb[i]));
        finish(name, sums);
    }

    void compare_side(const char* name, Side side) {
        const auto& pa = side == Side::k ? a_.k : a_.v;
        const auto& pb = side == Side::k ? b_.k : b_.v;
        const int64_t dim_a = side == Side::k ? a_.head_dim_k : a_.head_dim_v;
        const int64_t dim_b = side == Side::k ? b_.head_dim_k : b_.head_dim_v;
        const auto storage = [](const trace::CachePart& part) {
            return std::string(trace::ggml_type_info(part.rows.type).name) +
                   (part.cold.format.empty() ? "" : " and cold " + part.cold.format);
        };
        if (storage(pa) != storage(pb))
            note(name, "stored as " + storage(pa) + " in A, " + storage(pb) + " in B");
        if (dim_a != dim_b || a_.n_head_kv != b_.n_head_kv || a_.n_stream != b_.n_stream) {
            mismatch(name, "rows or streams of another shape");
            return;
        }
        const DensePart da = dense_part(a_, side), db = dense_part(b_, side);
        const std::vector<uint8_t> va = visible_cells(a_), vb = visible_cells(b_);
        const int64_t row = a_.n_head_kv * dim_a, n_kv = std::min(a_.n_kv, b_.n_kv);
        Accumulator sums;
        for (int64_t stream = 0; stream < a_.n_stream; ++stream) {
            for (int64_t cell = 0; cell < n_kv; ++cell) {
                const int64_t ca = stream * a_.n_kv + cell, cb = stream * b_.n_kv + cell;
                if (va[size_t(ca)] == 0 || vb[size_t(cb)] == 0) continue;
                for (int64_t i = 0; i < row; ++i) {
                    sums.add(da.values[size_t(ca * row + i)], db.values[size_t(cb * row + i)]);
                }
            }
        }
        finish(name, sums);
    }

    void finish(const char* name, const Accumulator& sums) {
        TensorDifference difference;
        difference.tensor = name;
        sums.finish(difference);
        result_.push_back(std::move(difference));
    }

    const TraceRecord& a_;
    const TraceRecord& b_;
    std::vector<TensorDifference> result_;
};

}  // namespace

bool TensorDifference::within(double tolerance) const {
    return note || (mismatch.empty() && max_relative <= tolerance);
}

std::vector<TensorDifference> compare_records(const TraceRecord& a, const TraceRecord& b) {
    return Comparer(a, b).run();
}

}  // namespace mixed_kv::trace_tools
