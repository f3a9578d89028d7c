#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "trace/trace_schema.h"

// Internal to the trace library: the meta- and scalars- tensors of a record.

namespace mixed_kv::trace {

// Layer and step of the record whose tensor holds some data; -1, -1: not stored.
struct StoredAt {
    int64_t layer = -1;
    int64_t step = -1;
};

// What the meta tensor says beyond TraceRecord: how the record is stored.
struct RecordStorage {
    TraceForm form = TraceForm::self_contained;
    StoredAt mask;
    StoredAt sinks;
    int64_t k_rows = 0, k_pages = 0, v_rows = 0, v_pages = 0;  // numbers of rows and pages
};

// `intern` returns the index of a text in the file's string table.
std::vector<int64_t> encode_meta(const TraceRecord& record, const RecordStorage& storage,
                                 const std::function<int64_t(std::string_view)>& intern);

std::vector<float> encode_scalars(const TraceRecord& record);

// Fills everything of `record` and `storage` that these two tensors hold. `meta` must have meta::kFields
// values, `scalars` kScalarFields. Throws Error for values that no writer produces.
void decode_meta(std::span<const int64_t> meta, std::span<const float> scalars,
                 std::span<const std::string> strings, TraceRecord& record, RecordStorage& storage);

// Throws Error if a field has another value than the one that follows from what was decoded: flags and fields
// without a meaning, those of views that are not there, and where tensors lie of which there is only one.
void check_meta(std::span<const int64_t> meta, std::span<const std::string> strings,
                const TraceRecord& record, const RecordStorage& storage);

}  // namespace mixed_kv::trace
