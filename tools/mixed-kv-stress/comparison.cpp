#include "mixed-kv-stress/comparison.h"

#include <ggml.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <stdexcept>

namespace mixed_kv::tools {

double Tolerance::epsilon(int bits) const {
    const double steps = std::ldexp(1.0, bits) - 1;
    return bits >= 16 ? 0.0 : encodings * kRange * kRange / (12 * steps * steps);
}

double Tolerance::rows(bool is_key, bool first_layer) const {
    if (!first_layer) return exact ? kExactRowNmse : logits();
    const double rounding = is_key ? shifts * 0x1p-22 : 0.0;
    if (exact) return rounding;
    return std::min(kUnrelated, rounding + 4 * epsilon(is_key ? key_bits : value_bits));
}

double Tolerance::logits() const {
    if (exact) return kExactNmse;
    const double scores = attention_sigma * attention_sigma;
    return std::min(encodings > 1 || key_bits <= 2 ? kUnrelatedCoarse : kUnrelated,
                    kExactNmse + 4 * n_layer * (epsilon(value_bits) + scores * epsilon(key_bits)));
}

double nmse(std::span<const float> expected, std::span<const float> actual) {
    double difference = 0, norm = 0;
    for (std::size_t i = 0; i < expected.size(); ++i) {
        const double d = double(actual[i]) - expected[i];
        difference += d * d;
        norm += double(expected[i]) * expected[i];
    }
    const double result = norm > 0 ? difference / norm : difference;
    return std::isfinite(result) ? result : std::numeric_limits<double>::infinity();
}

namespace {

class Reader {
  public:
    explicit Reader(std::span<const std::uint8_t> bytes) : bytes_(bytes) {}
    template <typename T>
    T take() {
        T value;
        std::memcpy(&value, skip(sizeof(T)), sizeof(T));
        return value;
    }
    const std::uint8_t* skip(std::size_t n) {
        if (n > bytes_.size() - at_) throw std::runtime_error("a saved state ends too early");
        at_ += n;
        return bytes_.data() + (at_ - n);
    }
    std::size_t at() const { return at_; }
    bool at_end() const { return at_ == bytes_.size(); }

  private:
    std::span<const std::uint8_t> bytes_;
    std::size_t at_ = 0;
};

void parse_stream(Reader& in, std::uint32_t n_cells, int cache, bool has_values, StateRows& rows) {
    for (std::uint32_t i = 0; i < n_cells; ++i) {
        const auto position = in.take<std::int32_t>();
        if (rows.tensors.empty()) rows.positions.push_back(position);
        in.skip(in.take<std::uint32_t>() * sizeof(std::int32_t));
    }
    if (in.take<std::uint32_t>() != 0) throw std::runtime_error("a saved state has transposed values");
    const auto n_layer = in.take<std::uint32_t>();
    for (const bool is_key : {true, false}) {
        if (!is_key && !has_values) continue;
        for (std::uint32_t layer = 0; layer < n_layer; ++layer) {
            if (in.take<std::int32_t>() != GGML_TYPE_F16)
                throw std::runtime_error("a saved state has rows that are not f16");
            if (rows.row_size_field == 0) rows.row_size_field = in.at();
            const auto row_bytes = in.take<std::uint64_t>();
            const std::size_t offset = in.at();
            in.skip(n_cells * row_bytes);
            rows.tensors.push_back(
                {is_key, static_cast<int>(layer), cache, row_bytes, offset, n_cells * row_bytes});
        }
    }
}

}  // namespace

StateRows parse_state(std::span<const std::uint8_t> state, bool whole, bool has_values) {
    Reader in(state);
    if (whole) {
        in.skip(in.take<std::uint32_t>());  // name of the architecture
    } else {
        in.take<std::uint32_t>();  // magic
        in.take<std::int32_t>();   // sequence
    }
    StateRows rows;
    for (int cache = 0; !in.at_end(); ++cache) {
        const auto n_stream = in.take<std::uint32_t>();
        for (std::uint32_t s = 0; s < n_stream; ++s) {
            if (const auto n_cells = in.take<std::uint32_t>(); n_cells > 0)
                parse_stream(in, n_cells, cache, has_values, rows);
        }
    }
    return rows;
}

std::map<std::int32_t, std::vector<std::vector<std::uint8_t>>> rows_by_position(
    std::span<const std::uint8_t> state, bool has_values) {
    const StateRows rows = parse_state(state, false, has_values);
    std::map<std::int32_t, std::vector<std::vector<std::uint8_t>>> result;
    for (const StateRows::Tensor& tensor : rows.tensors) {
        for (std::size_t row = 0; row < rows.positions.size(); ++row) {
            const std::uint8_t* from = state.data() + tensor.offset + row * tensor.row_bytes;
            result[rows.positions[row]].emplace_back(from, from + tensor.row_bytes);
        }
    }
    return result;
}

RowsError compare_states(std::span<const std::uint8_t> expected, std::span<const std::uint8_t> actual,
                         bool whole, bool has_values, const Tolerance& tolerance) {
    if (expected.size() != actual.size()) throw std::runtime_error("saved states differ in size");
    const StateRows rows = parse_state(expected, whole, has_values);
    const bool two_caches =
        std::any_of(rows.tensors.begin(), rows.tensors.end(), [](const auto& t) { return t.cache > 0; });
    RowsError error;
    std::vector<float> a, b;
    std::size_t checked = 0;
    for (const StateRows::Tensor& tensor : rows.tensors) {
        if (std::memcmp(expected.data() + checked, actual.data() + checked, tensor.offset - checked) != 0)
            throw std::runtime_error("saved states differ in cells, positions or sequences");
        checked = tensor.offset + tensor.size;
        const std::size_t n = tensor.row_bytes / sizeof(ggml_fp16_t), n_rows = tensor.size / tensor.row_bytes;
        a.resize(n * n_rows);
        b.resize(n * n_rows);
        ggml_fp16_to_fp32_row(reinterpret_cast<const ggml_fp16_t*>(expected.data() + tensor.offset), a.data(),
                              static_cast<std::int64_t>(a.size()));
        ggml_fp16_to_fp32_row(reinterpret_cast<const ggml_fp16_t*>(actual.data() + tensor.offset), b.data(),
                              static_cast<std::int64_t>(b.size()));
        double energy = 0;
        for (const float x : a) energy += double(x) * x;
        energy /= double(n_rows);
        // Which layer comes first is known for a single cache only.
        const double bound = tolerance.rows(tensor.is_key, !two_caches && tensor.layer == 0);
        for (std::size_t row = 0; row < n_rows; ++row) {
            double difference = 0;
            for (std::size_t i = row * n; i < (row + 1) * n; ++i) {
                const double d = double(b[i]) - a[i];
                difference += d * d;
            }
            double relative = energy > 0 ? difference / energy : difference;
            if (!std::isfinite(relative)) relative = std::numeric_limits<double>::infinity();
            const double share = relative == 0 ? 0 : relative / std::max(bound, 1e-300);
            if (share > error.worst) {
                error.worst = share;
                error.nmse = relative;
                error.where = std::string(tensor.is_key ? "K" : "V") + " of layer " +
                              std::to_string(tensor.layer) + ", row " + std::to_string(row) + " of " +
                              std::to_string(n_rows);
            }
        }
    }
    if (std::memcmp(expected.data() + checked, actual.data() + checked, expected.size() - checked) != 0)
        throw std::runtime_error("saved states differ in cells, positions or sequences");
    return error;
}

}  // namespace mixed_kv::tools
