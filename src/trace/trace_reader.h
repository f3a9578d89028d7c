#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "trace/gguf_reader.h"
#include "trace/trace_schema.h"

namespace mixed_kv::trace {

struct RecordId {
    int32_t layer = 0;
    int32_t step = 0;
    bool operator==(const RecordId&) const = default;
};

// Opens a trace file of either form and loads its records one at a time. Opening checks the container and the
// names; load() checks the record (validate()). Throws Error naming the file, layer, step and tensor.
// load() is const and safe from several threads.
class TraceReader {
  public:
    explicit TraceReader(const std::filesystem::path& path);
    explicit TraceReader(GgufReader gguf);

    TraceForm form() const noexcept { return form_; }

    // All records, by step, then layer.
    const std::vector<RecordId>& records() const noexcept { return records_; }

    // One record with all its data, in the same representation for both forms.
    TraceRecord load(RecordId id) const;

    // The tensors that the file holds under this record's name, in file order, for listings. A compact file
    // holds only what is new in that step.
    std::vector<GgufTensor> tensors(RecordId id) const;

    // Texts set with TraceWriter::set_info(), name and text.
    std::vector<std::pair<std::string, std::string>> info() const;

    const GgufReader& gguf() const noexcept { return gguf_; }

  private:
    // A tensor that holds versions of rows or pages of one layer; in file order their ids ascend from 0.
    struct Slice {
        int64_t first_id = 0;
        int64_t count = 0;
        size_t tensor = 0;
        uint64_t bytes_so_far = 0;  // of all versions up to and with this tensor
    };
    using VersionKey = std::pair<std::string, int32_t>;  // kind and layer

    void read_names();
    [[noreturn]] void fail(const std::string& what) const;
    template <typename T>
    std::vector<T> values(const std::string& name, GgmlType type, const Shape& ne) const;
    TensorData tensor_data(const std::string& name) const;
    void load_part(const std::string& name, int64_t n_rows, int64_t n_pages, const TraceRecord& record,
                   CachePart& part) const;
    void load_compact_part(const std::string& name, int64_t n_rows, int64_t n_pages,
                           const TraceRecord& record, CachePart& part) const;
    uint64_t checked_bytes(const VersionKey& key, const TensorData& wanted) const;
    void read_versions(const VersionKey& key, int64_t first_id, int64_t count, uint64_t expected_bytes,
                       TensorData& out) const;

    GgufReader gguf_;
    TraceForm form_ = TraceForm::self_contained;
    std::vector<std::string> strings_;
    std::vector<RecordId> records_;
    std::map<VersionKey, std::vector<Slice>> versions_;  // compact form
};

}  // namespace mixed_kv::trace
