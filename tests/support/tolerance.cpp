#include "support/tolerance.h"

#include <cmath>
#include <limits>
#include <sstream>

namespace mixed_kv::test {

// u is the unit roundoff of float. Errors of n roundings add up like a random walk, to about sqrt(n) of one;
// the factors below leave about four standard deviations on top of that.
//
// Logits. A float dot product of head_dim terms is off by about sqrt(head_dim) / 4 * u * sum |q_d k_d|
// (partial sums of random signs stay below a quarter of the sum of magnitudes); the logit itself, mask and
// soft-cap included, is rounded a few times and exponentiated to within a few ulp: 2 u |logit| + 4 u. For
// cold keys q * scale is rounded to 16 bits: per channel at most half of max / 2^15, times a code, so the dot
// product is off by about sqrt(head_dim) / 2^15 / 6 * max |q_d k_d| (a rounding error and a code are both
// spread evenly: 0.29 * 0.58 of their ranges), three standard deviations of which are 0.5.
//
// A set may be off by up to e = KernelSet::product_error in each product of floats. On AMX tiles e is 3 /
// 2^16: three errors, each the product of two roundings to 8 bits of up to 2^-8 each. Spread evenly, such a
// rounding is 0.4 of its bound in the mean square, two of them 0.16, and three errors 0.28 of 2^-16, which is
// 0.092 e; the dot product is off by 0.092 e sqrt(head_dim) max |q_d k_d|, four standard deviations of which
// are 0.37. Products p v alike: 0.37 e of what is summed.
//
// Output. With e the error of the logits, o moves by sum p_t e_t (v_t - o). Where the signs of e differ from
// cell to cell that is at most e * max |v| * 2 sqrt(sum p^2); a tenth of the worst case is added for what the
// cells of a page have in common.
//
// Sums over up to 64 cells in a page, then over pages, in float: 2 (8 + sqrt(n_pages)) u of what is summed,
// which is |o| where values agree and sqrt(sum p^2) max |v| where their signs differ. With cold values p *
// scale is rounded to 16 bits of the page's largest: sqrt(64) * 0.29 * 0.58 / 2^15 = 4.1e-5 of the range
// times the page's largest p; five standard deviations, and over pages the squares of p add up. Cold values
// are summed in the rotated basis, then rotated back: log2(head_dim) roundings of sums of the same kind.
double row_tolerance(const ErrorModel& model, const reference::RowMagnitudes& row) {
    constexpr double u = 0x1p-24;
    const double n_pages = double((model.n_kv + 63) / 64);
    const double dim = std::sqrt(double(model.head_dim_k));
    const double summed = row.value * row.p_norm + row.output;

    double logit_error = dim * u * row.score_terms + 2.0 * u * row.logit + 4.0 * u;
    logit_error += 0.37 * model.product_error * dim * row.score_term;
    if (model.integer_scores) logit_error += 0.5 * dim * 0x1p-15 * row.score_term;
    double tolerance = row.value * logit_error * (2.0 * row.p_norm + 0.1);
    tolerance += 2.0 * (8.0 + std::sqrt(n_pages)) * u * summed;
    tolerance += 0.37 * model.product_error * row.value * row.p_norm;
    if (model.integer_values) tolerance += 2.1e-4 * model.value_range * row.p_norm;
    if (model.rotated_values) {
        tolerance +=
            2.0 * std::log2(double(model.head_dim_v)) * u * (model.value_range * row.p_norm + row.output);
    }
    return tolerance;
}

RowErrors compare_rows(std::span<const float> actual, std::span<const double> expected,
                       std::span<const double> tolerances, std::size_t row_size) {
    RowErrors result;
    if (actual.size() != expected.size() || tolerances.size() * row_size != expected.size()) {
        result.n_bad = result.n_rows = 1;
        result.worst_ratio = std::numeric_limits<double>::infinity();
        return result;
    }
    double error_squares = 0.0, squares = 0.0;
    for (std::size_t row = 0; row < tolerances.size(); ++row) {
        double worst = 0.0;
        for (std::size_t i = row * row_size; i < (row + 1) * row_size; ++i) {
            const double error = std::fabs(double(actual[i]) - expected[i]);
            if (!(error <= worst))
                worst = std::isnan(error) ? std::numeric_limits<double>::infinity() : error;
            error_squares += error * error;
            squares += expected[i] * expected[i];
        }
        ++result.n_rows;
        if (!(worst <= tolerances[row])) ++result.n_bad;
        // A row of zeros (nothing visible) has tolerance 0 and must be exact.
        const double ratio = worst == 0.0 ? 0.0 : worst / tolerances[row];
        if (ratio > result.worst_ratio) {
            result.worst_ratio = ratio;
            result.worst_row = row;
        }
    }
    result.relative_rms = squares > 0.0 ? std::sqrt(error_squares / squares) : 0.0;
    return result;
}

std::string RowErrors::message() const {
    std::ostringstream out;
    out << n_bad << " of " << n_rows << " rows beyond their tolerance; worst is row " << worst_row << " with "
        << worst_ratio << " times its tolerance; relative RMS over all rows " << relative_rms;
    return out.str();
}

}  // namespace mixed_kv::test
