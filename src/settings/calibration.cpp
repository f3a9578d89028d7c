#include "mixed_kv/calibration.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <fstream>
#include <limits>
#include <sstream>

#include "mixed_kv/error.h"

namespace mixed_kv {

namespace {

constexpr std::string_view kHeader = "mixed-kv-calibration 1";

std::string shown(std::string_view text) {
    std::string result;
    for (const char c : text.substr(0, 80)) result += static_cast<unsigned char>(c) < ' ' ? '?' : c;
    return result;
}

// "K 3": which tensor, for messages.
std::string tensor_name(KvRole role, int layer) {
    return std::string(role == KvRole::key ? "K" : "V") + " of layer " + std::to_string(layer);
}

template <typename T>
bool parse_number(std::string_view text, T& value) {
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    return error == std::errc{} && end == text.data() + text.size();
}

// "k 0 64 64 q8 1e-9 q6 2e-8 ...": role, layer, row_elements, head_dim, then the KLD of every format.
Calibration::Tensor parse_tensor(std::string_view line) {
    std::vector<std::string_view> words;
    while (!line.empty()) {
        const auto space = line.find(' ');
        words.push_back(line.substr(0, space));
        line.remove_prefix(space == std::string_view::npos ? line.size() : space + 1);
    }
    const auto formats = cold_formats();
    if (words.size() != 4 + 2 * formats.size()) {
        throw Error("expected ROLE LAYER ROW_ELEMENTS HEAD_DIM and a KLD for each of " +
                    std::to_string(formats.size()) + " formats");
    }
    Calibration::Tensor tensor;
    if (words[0] != "k" && words[0] != "v") throw Error("the role is k or v");
    tensor.role = words[0] == "k" ? KvRole::key : KvRole::value;
    if (!parse_number(words[1], tensor.layer) || tensor.layer < 0) throw Error("no layer number");
    if (!parse_number(words[2], tensor.row_elements) || !parse_number(words[3], tensor.head_dim) ||
        tensor.head_dim < 1 || tensor.row_elements < 1 || tensor.row_elements % tensor.head_dim != 0) {
        throw Error("a row holds a whole number of heads");
    }
    tensor.kld.assign(formats.size(), 0);
    for (std::size_t i = 0; i < formats.size(); ++i) {
        double kld = 0;
        if (words[4 + 2 * i] != formats[i].name) {
            throw Error("expected the format " + std::string(formats[i].name));
        }
        if (!parse_number(words[5 + 2 * i], kld) || !(kld >= 0) || !std::isfinite(kld)) {
            throw Error("a KLD is a number of at least 0");
        }
        tensor.kld[i] = kld;
    }
    return tensor;
}

}  // namespace

std::string Calibration::to_text() const {
    std::ostringstream out;
    out << kHeader << "\nmodel " << shown(model) << '\n';
    for (const Tensor& t : tensors) {
        out << (t.role == KvRole::key ? "k " : "v ") << t.layer << ' ' << t.row_elements << ' ' << t.head_dim;
        for (std::size_t i = 0; i < t.kld.size(); ++i)
            out << ' ' << cold_formats()[i].name << ' ' << t.kld[i];
        out << '\n';
    }
    return out.str();
}

Calibration Calibration::from_text(std::string_view text) {
    Calibration result;
    int number = 0;
    while (!text.empty()) {
        const auto end = text.find('\n');
        const std::string_view line = text.substr(0, end);
        text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
        ++number;
        try {
            if (number == 1) {
                if (line != kHeader) throw Error("expected '" + std::string(kHeader) + "'");
            } else if (number == 2) {
                if (line.substr(0, 6) != "model ") throw Error("expected the model's name");
                result.model = shown(line.substr(6));
            } else {
                result.tensors.push_back(parse_tensor(line));
                const Tensor& added = result.tensors.back();
                const auto same = [&](const Tensor& t) {
                    return t.role == added.role && t.layer == added.layer;
                };
                if (std::count_if(result.tensors.begin(), result.tensors.end(), same) > 1) {
                    throw Error(tensor_name(added.role, added.layer) + " stands there twice");
                }
            }
        } catch (const Error& error) {
            throw Error("line " + std::to_string(number) + ": " + error.what());
        }
    }
    if (result.tensors.empty()) throw Error("it holds no tensors");
    return result;
}

Calibration Calibration::read(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    std::ostringstream text;
    // A folder opens but gives nothing.
    if (!file || !(text << file.rdbuf())) {
        throw Error("the calibration file '" + shown(path) + "' cannot be read, or is empty");
    }
    try {
        return from_text(text.str());
    } catch (const Error& error) {
        throw Error("'" + shown(path) + "' is no calibration file: " + error.what());
    }
}

BitAllocation::BitAllocation(const Calibration& calibration, double bits)
    : model_(calibration.model), tensors_(calibration.tensors) {
    const auto formats = cold_formats();
    const auto stored = [&](std::size_t t, std::size_t f) {
        const Calibration::Tensor& tensor = tensors_[t];
        return formats[f].bits_per_value(tensor.role, tensor.head_dim) * tensor.row_elements;
    };
    double values = 0;
    for (const Calibration::Tensor& tensor : tensors_) values += tensor.row_elements;
    const double budget = bits * values;

    // Start with the smallest everywhere; always take the step, to any wider format of any tensor that
    // fits, that saves the most divergence per bit. Greedy on a convex trade is optimal up to its last step.
    std::vector<std::size_t> choice(tensors_.size(), formats.size() - 1);
    double used = 0;
    for (std::size_t t = 0; t < tensors_.size(); ++t) used += stored(t, choice[t]);
    if (used > budget) {
        std::ostringstream least;
        least << used / values;
        throw Error("the smallest formats need " + least.str() + " bits per value on this model");
    }
    while (true) {
        double best_rate = 0;
        std::size_t best_tensor = 0, best_format = 0;
        for (std::size_t t = 0; t < tensors_.size(); ++t) {
            for (std::size_t f = 0; f < choice[t]; ++f) {
                const double more = stored(t, f) - stored(t, choice[t]);
                const double saved = tensors_[t].kld[choice[t]] - tensors_[t].kld[f];
                if (used + more <= budget && saved > best_rate * more) {
                    best_rate = saved / more;
                    best_tensor = t;
                    best_format = f;
                }
            }
        }
        if (best_rate <= 0) break;
        used += stored(best_tensor, best_format) - stored(best_tensor, choice[best_tensor]);
        choice[best_tensor] = best_format;
    }
    bits_ = used / values;
    for (std::size_t t = 0; t < tensors_.size(); ++t) {
        chosen_.push_back(&formats[choice[t]]);
        expected_kld_ += tensors_[t].kld[choice[t]];
    }
}

const ColdFormat* BitAllocation::format(KvRole role, int layer, int row_elements) const {
    for (const Calibration::Tensor& tensor : tensors_) {
        if (tensor.role != role || tensor.layer != layer) continue;
        if (tensor.row_elements == row_elements) return format(role, layer);
        throw Error("the calibration of '" + model_ + "' has " + std::to_string(tensor.row_elements) +
                    " values a row for " + tensor_name(role, layer) + ", this model " +
                    std::to_string(row_elements));
    }
    throw Error("the calibration of '" + model_ + "' knows no " + tensor_name(role, layer) +
                ": it is another model's");
}

const ColdFormat* BitAllocation::format(KvRole role, int layer) const noexcept {
    for (std::size_t t = 0; t < tensors_.size(); ++t) {
        if (tensors_[t].role == role && tensors_[t].layer == layer) return chosen_[t];
    }
    return nullptr;
}

}  // namespace mixed_kv
