#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "trace/gguf_reader.h"
#include "trace/trace_schema.h"

// Shared by the tests of src/trace: crafted files, sample records, children that die.

namespace mixed_kv::trace::testing {

// A fresh folder that is removed with its content.
class TempFolder {
  public:
    TempFolder();
    ~TempFolder();
    TempFolder(const TempFolder&) = delete;
    TempFolder& operator=(const TempFolder&) = delete;

    const std::filesystem::path& path() const { return path_; }
    std::filesystem::path operator/(std::string_view name) const { return path_ / name; }

    // Names of everything in it, hidden files too, sorted.
    std::vector<std::string> entries() const;

  private:
    std::filesystem::path path_;
};

// Writes GGUF byte by byte, right or wrong.
class GgufBytes {
  public:
    template <typename T>
    GgufBytes& put(T value) {
        const auto raw = std::as_bytes(std::span(&value, 1));
        bytes_.insert(bytes_.end(), raw.begin(), raw.end());
        return *this;
    }
    GgufBytes& text(std::string_view raw);
    GgufBytes& string(std::string_view value) { return put<uint64_t>(value.size()).text(value); }
    GgufBytes& header(uint64_t n_tensors, uint64_t n_kv, uint32_t version = 3);
    GgufBytes& tensor(std::string_view name, const std::vector<int64_t>& ne, int32_t type, uint64_t offset);
    GgufBytes& key(std::string_view name, uint32_t type) { return string(name).put(type); }
    GgufBytes& pad(size_t alignment = 32);
    GgufBytes& zeros(size_t n);

    const std::vector<std::byte>& bytes() const { return bytes_; }

  private:
    std::vector<std::byte> bytes_;
};

// A small valid file: keys of every kind, tensors of several types, one of them empty.
std::vector<std::byte> sample_gguf();

// Opens bytes as a file; throws what GgufReader throws.
GgufReader open_bytes(std::span<const std::byte> bytes);

void write_file(const std::filesystem::path& path, std::span<const std::byte> bytes);
std::vector<std::byte> read_file(const std::filesystem::path& path);
std::string read_text(const std::filesystem::path& path);

// The message of the Error that `action` throws; "(no error)" if it throws none.
std::string error_of(const std::function<void()>& action);

// Runs `action` in a child process and returns its wait status; an escaping exception is exit status 99.
// Nothing of the test framework runs in the child.
int in_child(const std::function<int()>& action);

// Resident memory of this process now, in bytes.
uint64_t resident_bytes();

// True under a sanitizer, where memory and time limits mean nothing.
bool sanitized();

struct SampleShape {
    CacheKind cache = CacheKind::mixed;
    int64_t n_tokens = 1;
    int64_t n_head = 4;
    int64_t n_head_kv = 2;
    int64_t head_dim = 32;
    int64_t n_used = 200;   // cells in use; n_kv is this rounded up to 256
    int64_t hot_rows = 40;  // the newest cells, at least; older pages are cold
    bool with_sinks = false;
    bool with_mask = true;
    int64_t position = -1;  // -1: as if all steps had n_tokens
};

// A record with contents that depend on (layer, cell) for rows and pages, so that they stay equal from step
// to step, and on the step for q and kqv_out. Cells 0 and 1 have exact rows when their page is cold.
TraceRecord sample_record(int32_t layer, int32_t step, const SampleShape& shape = {});

// Expects all fields of two records to be equal, reporting each that is not.
void expect_equal(const TraceRecord& a, const TraceRecord& b);

}  // namespace mixed_kv::trace::testing
