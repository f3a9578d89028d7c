#pragma once

#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "kqv-tensor-reader/check.h"
#include "kqv-tensor-reader/quantization.h"

namespace mixed_kv::trace_tools {

// What the reader found in one file.
struct Report {
    double tolerance = 1e-4;
    std::string file;
    std::string references;  // what it was checked against
    std::string originals;   // what quantization errors are counted from; empty: nothing is known
    struct Entry {
        RecordCheck check;
        RecordQuantization quantization;
        std::vector<std::string> tensors;  // names in the file
    };
    std::vector<Entry> records;

    bool pass() const;
    // "mixed" if any record is, else "standard".
    const char* cache() const;
    // Records of this kind of cache, and how many of them are out of tolerance. A run with a mixed cache can
    // hold standard records: attention that the host computed with its own kernel on a copy of the cache.
    size_t n_records(trace::CacheKind cache) const;
    size_t n_failed(trace::CacheKind cache) const;
    // Distinct steps and layers.
    size_t n_steps() const;
    size_t n_layers() const;
    double max_error() const;
    // The record with the largest share of its limit; null if nothing was checked.
    const RecordCheck* worst() const;
    // Of each layer's last step that has any quantized row with a known original.
    std::map<int32_t, RecordQuantization> quantization_by_layer() const;
};

// {pass, cache, steps, layers, max_error, tolerance, limit_share, limit_at: {layer, step, token, head,
// stream}, records: [{layer, step, tensors, max_error, rms_error, n_hot, n_cold, limit_share, ...}]}. Numbers
// that are not finite become null.
nlohmann::ordered_json to_json(const Report& report);

// One line per record, comma-separated, with a heading.
std::string to_csv(const Report& report);

// A map of the errors by layer and step, as SVG.
std::string to_svg(const Report& report);

// At most n_rows records, one line each, with a heading. Where there are more, those out of tolerance and
// those closest to their limit come first, and a line says how many are left out.
std::string to_table(const Report& report, size_t n_rows);

// RMS of decoded rows against their originals by layer, K and V apart; nothing where no originals are known.
// Of more than n_rows layers, those with the largest share come first, as above.
std::string quantization_table(const Report& report, size_t n_rows);

}  // namespace mixed_kv::trace_tools
