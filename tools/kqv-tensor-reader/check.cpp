#include "kqv-tensor-reader/check.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

namespace mixed_kv::trace_tools {

using trace::TraceRecord;

namespace {

// std::max loses a NaN on one side.
double worse(double a, double b) { return std::isnan(a) || !(b <= a) ? (std::isnan(a) ? a : b) : a; }

double worse_of(const ErrorFigures& a, const ErrorFigures& b, double ErrorFigures::*figure) {
    if (!a.computed) return b.*figure;
    return b.computed ? worse(a.*figure, b.*figure) : a.*figure;
}

// Ratio of an error to its bound; 0 of 0 is fine.
double ratio(double error, double bound) { return error == 0 ? 0 : error / bound; }

class Comparison {
  public:
    Comparison(const AttentionData& data, const std::vector<float>& recorded,
               const std::vector<reference::RowMagnitudes>& sizes, double tolerance)
        : data_(data), recorded_(recorded), sizes_(sizes), tolerance_(tolerance) {}

    template <typename T>
    ErrorFigures with(const std::vector<T>& recomputed, std::vector<double>& row_shares) const {
        ErrorFigures figures;
        figures.computed = true;
        double squares = 0;
        const auto n_rows = int64_t(sizes_.size()), dim = data_.head_dim_v;
        row_shares.resize(sizes_.size(), 0.0);
        for (int64_t row = 0; row < n_rows; ++row) {
            double max = 0, error_squares = 0, row_squares = 0;
            for (int64_t d = 0; d < dim; ++d) {
                const auto at = size_t(row * dim + d);
                const double expected = double(recomputed[at]);
                const double error = std::fabs(double(recorded_[at]) - expected);
                max = worse(max, error);
                error_squares += error * error;
                row_squares += expected * expected;
            }
            squares += error_squares;
            const double relative = ratio(std::sqrt(error_squares), std::sqrt(row_squares));
            const double share =
                worse(ratio(max, tolerance_ * sizes_[size_t(row)].value), relative / (10 * tolerance_));
            row_shares[size_t(row)] = worse(row_shares[size_t(row)], share);
            if (!(share <= 1)) ++figures.failed_rows;
            if (!std::isnan(figures.limit_share) && !(share <= figures.limit_share)) {
                figures.limit_share = share;
                figures.worst_head = row % data_.n_head;
                figures.worst_token = row / data_.n_head % data_.n_tokens;
                figures.worst_stream = row / data_.n_head / data_.n_tokens;
            }
            figures.max_error = worse(figures.max_error, max);
            figures.max_relative = worse(figures.max_relative, relative);
        }
        figures.rms_error = std::sqrt(squares / double(std::max<int64_t>(1, n_rows * dim)));
        return figures;
    }

  private:
    const AttentionData& data_;
    const std::vector<float>& recorded_;
    const std::vector<reference::RowMagnitudes>& sizes_;
    double tolerance_;
};

std::string describe(const char* against, const ErrorFigures& f, const AttentionData& data) {
    char text[320];
    std::snprintf(
        text, sizeof text,
        "%lld of %lld rows out of tolerance against %s; the worst, token %lld of head %lld%s, is off by "
        "%.3g times what is allowed (largest error %.3g, relative L2 %.3g)",
        static_cast<long long>(f.failed_rows),
        static_cast<long long>(data.n_stream * data.n_tokens * data.n_head), against,
        static_cast<long long>(f.worst_token), static_cast<long long>(f.worst_head),
        data.n_stream > 1 ? (" in stream " + std::to_string(f.worst_stream)).c_str() : "", f.limit_share,
        f.max_error, f.max_relative);
    return text;
}

}  // namespace

double RecordCheck::max_error() const { return worse_of(torch, exact, &ErrorFigures::max_error); }
double RecordCheck::rms_error() const { return worse_of(torch, exact, &ErrorFigures::rms_error); }
double RecordCheck::max_relative() const { return worse_of(torch, exact, &ErrorFigures::max_relative); }
const ErrorFigures& RecordCheck::worst() const {
    if (!torch.computed) return exact;
    if (!exact.computed || std::isnan(torch.limit_share)) return torch;
    return exact.limit_share <= torch.limit_share ? torch : exact;
}

RecordCheck check_record(const TraceRecord& record, const CheckOptions& options, KeepOutput keep) {
    RecordCheck check;
    check.layer = record.layer;
    check.step = record.step;
    check.cache = record.cache;
    check.n_tokens = record.n_tokens;
    check.n_kv = record.n_kv;
    if (!record.has_sources) {
        check.problem = "recorded without sources, nothing to recompute from";
        return check;
    }
    const AttentionData data = attention_data(record);
    check.checked = true;
    check.n_hot = data.n_hot;
    check.n_cold = data.n_cold;
    const std::vector<float> recorded = to_floats(record.kqv_out);
    // Also computed when only libtorch judges: it says how large the values are that a row sees.
    reference::AttentionOutputs exact = attention_in_double(data);
    const Comparison compare(data, recorded, exact.magnitudes, options.tolerance);
    if (options.use != ReferenceUse::torch || !has_torch())
        check.exact = compare.with(exact.o, check.row_shares);
    if (options.use != ReferenceUse::exact && has_torch())
        check.torch = compare.with(attention_in_torch(data), check.row_shares);
    check.pass = check.torch.failed_rows == 0 && check.exact.failed_rows == 0;
    if (check.torch.failed_rows > 0) {
        check.problem = describe("libtorch", check.torch, data);
    } else if (check.exact.failed_rows > 0) {
        check.problem = describe("the double reference", check.exact, data);
    }
    if (keep == KeepOutput::yes) {
        check.recomputed = std::move(exact.o);
    } else {
        check.row_shares = {};
    }
    return check;
}

}  // namespace mixed_kv::trace_tools
