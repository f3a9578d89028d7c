#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "trace/trace_schema.h"

// Internal to the trace library: what binds the parts of a trace to each other. Every row and page has a
// stamp that says what was stored where, and in which step; records of one layer follow one another by rules.

namespace mixed_kv::trace {

// Of a row or page: the step from which on all records of the layer hold it unchanged, and a checksum of its
// layer, its place in the cache, and its bytes.
struct Stamp {
    int32_t since = 0;
    uint64_t sum = 0;
    bool operator==(const Stamp&) const = default;
};

struct PartStamps {
    std::vector<Stamp> rows;   // as CachePart::cells
    std::vector<Stamp> pages;  // as CachePart::pages
};

// A record with its stamps. As a predecessor it needs no bytes of tensors.
struct StampedRecord {
    TraceRecord record;
    PartStamps k, v;
};

// The stamps that K and V of a valid record have after `previous`, the record of its layer before it, if
// there is one.
std::pair<PartStamps, PartStamps> make_stamps(const TraceRecord& record, const StampedRecord* previous);

// Throws Error unless `next` can follow `previous` (null: it begins its layer): the same op on the same
// cache, at the next position, with no more cells changed than a step of its tokens writes.
void check_follows(const StampedRecord* previous, const StampedRecord& next);

// The sums- tensor, kSumFields.
std::vector<int64_t> make_sums(const TraceRecord& record, const PartStamps& k, const PartStamps& v,
                               std::span<const int64_t> meta, std::span<const float> scalars);

// The written_sums- tensor, kWrittenSumFields: checksums of k_written and v_written, 0 for what is not kept.
std::vector<int64_t> make_written_sums(const TraceRecord& record);
int64_t written_sum(WrittenSumField field, int32_t layer, int32_t step, const WrittenRows& written);

// Throws Error if rows as they were written are not what the record holds at their cells: the same bytes in
// an exact row, else a quantized row or a page of this very step. The record must be valid.
void check_written(const TraceRecord& record, const PartStamps& k, const PartStamps& v);

// The file's checksum, of its texts; `info` ordered by name.
uint64_t file_sum(TraceForm form, uint64_t n_records, std::span<const std::string> strings,
                  std::span<const std::pair<std::string, std::string>> info);

// Names of the sums, for messages.
const char* sum_name(size_t field);

}  // namespace mixed_kv::trace
