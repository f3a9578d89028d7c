#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "trace/gguf_reader.h"
#include "trace/trace_schema.h"
#include "trace/trace_versions.h"

namespace mixed_kv::trace {

struct RecordId {
    int32_t layer = 0;
    int32_t step = 0;
    bool operator==(const RecordId&) const = default;
};

// Opens a trace file of either form and loads its records one at a time. Opening checks the container, its
// texts and the names of its tensors; load() checks the record (validate()), its checksums, and that it can
// follow the record of its layer before it. Throws Error naming the file, layer, step and tensor. load() is
// const and safe from several threads.
class TraceReader {
  public:
    explicit TraceReader(const std::filesystem::path& path);
    explicit TraceReader(GgufReader gguf);

    TraceForm form() const noexcept { return form_; }

    // All records, by step, then layer.
    const std::vector<RecordId>& records() const noexcept { return records_; }

    // One record with all its data, in the same representation for both forms.
    TraceRecord load(RecordId id) const;

    // K and V as the record's step wrote them, without anything else of the record; empty where the file
    // keeps none. Their checksum is checked.
    std::pair<WrittenRows, WrittenRows> load_written(RecordId id) const;

    // The tensors that the file holds under this record's name, in file order, for listings. A compact file
    // holds only what is new in that step.
    std::vector<GgufTensor> tensors(RecordId id) const;

    // Texts set with TraceWriter::set_info(), name and text.
    std::vector<std::pair<std::string, std::string>> info() const;

    const GgufReader& gguf() const noexcept { return gguf_; }

  private:
    struct Tables;

    void read_keys();
    void read_names();
    template <typename T>
    std::vector<T> list(const std::string& name, int64_t n_columns, int64_t n) const;
    TensorData tensor_data(const std::string& name) const;
    std::optional<RecordId> record_before(RecordId id) const;

    Tables load_tables(RecordId id) const;
    void load_lists(const std::string& name, int64_t n_rows, int64_t n_pages, Tables& tables) const;
    void load_compact_lists(const std::string& name, int64_t n_rows, int64_t n_pages, Tables& tables) const;
    void load_data(Tables& tables) const;
    void load_part(const std::string& name, Tables& tables) const;
    void check_kinds(const Tables& tables) const;
    void check_bound(const Tables& tables) const;

    GgufReader gguf_;
    TraceForm form_ = TraceForm::self_contained;
    std::vector<std::string> strings_;
    std::vector<RecordId> records_;
    VersionIndex versions_;  // compact form
};

}  // namespace mixed_kv::trace
