#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "mixed_kv/cold_format.h"

namespace mixed_kv {

// What each format of each layer's K and V costs one model in quality, measured by mixed-kv-eval
// --calibrate with everything else exact. The file is text, one fact a line (docs/settings.md).
struct Calibration {
    struct Tensor {
        int layer = 0;
        KvRole role = KvRole::key;
        int row_elements = 0;  // values of one row, all heads
        int head_dim = 0;
        std::vector<double> kld;  // mean KLD in nats by format, in the order of cold_formats()
    };
    std::string model;  // its name, for messages
    std::vector<Tensor> tensors;

    std::string to_text() const;
    // Throws Error naming the line that is wrong.
    static Calibration from_text(std::string_view text);
    // Throws Error naming the file.
    static Calibration read(const std::string& path);
};

// Formats by layer for a budget of bits.
class BitAllocation {
  public:
    // The smallest sum of divergences whose stored bits (codes and their scales, of rows that left the
    // window) are at most `bits` per value on average. Divergences of different tensors add up to first
    // order. Throws Error when even the smallest formats need more.
    BitAllocation(const Calibration& calibration, double bits);

    // Throws Error when the calibration has no such tensor, or one of another width: it is another model's.
    const ColdFormat* format(KvRole role, int layer, int row_elements) const;
    // nullptr (f16) for a tensor that the calibration lacks.
    const ColdFormat* format(KvRole role, int layer) const noexcept;

    double bits() const noexcept { return bits_; }                  // stored, of the choice
    double expected_kld() const noexcept { return expected_kld_; }  // sum over the tensors

  private:
    std::string model_;
    std::vector<Calibration::Tensor> tensors_;
    std::vector<const ColdFormat*> chosen_;
    double bits_ = 0, expected_kld_ = 0;
};

}  // namespace mixed_kv
