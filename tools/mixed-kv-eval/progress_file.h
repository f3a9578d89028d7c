#pragma once

#include <fstream>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "mixed-kv-eval/divergence.h"

namespace mixed_kv::tools {

// What one configuration showed in one context.
struct ChunkResult {
    Divergence divergence;
    double bits_sum = 0;  // bits per value, summed over n_bits scored positions
    std::size_t n_bits = 0;
    double kv_bytes = 0;  // at the end of the context
    bool cold = false;    // some row was cold when a position was scored
};

// The results of a run by configuration and context, one JSON object a line, so that a run can be taken up
// where it stopped and configurations can be added to it. Lines of other runs (another model, text or
// context) stay and are skipped; so is a last line that was cut off.
class ProgressFile {
  public:
    // path empty: nothing is kept. key: what a run's results depend on. Throws std::runtime_error when the
    // file cannot be read or written, or is no such file.
    ProgressFile(const std::string& path, std::string key);

    // nullptr: not done yet.
    const ChunkResult* find(const std::string& configuration, int chunk) const;
    void add(const std::string& configuration, int chunk, const ChunkResult& result);

  private:
    std::string path_, key_;
    std::map<std::pair<std::string, int>, ChunkResult> done_;
    std::ofstream out_;
};

}  // namespace mixed_kv::tools
