#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <optional>
#include <span>
#include <string_view>

#include "trace/atomic_file.h"

namespace mixed_kv::trace {

// A result that is written piece by piece: a regular file appears, or is replaced, in one step and only when
// complete (AtomicFile). A target that exists and is no regular file, such as /dev/stdout or a pipe, is
// written directly. All functions throw Error with the path and the reason.
class OutputFile {
  public:
    explicit OutputFile(const std::filesystem::path& path, uint64_t expected_bytes = 0);
    void append(std::span<const std::byte> bytes);
    void append(std::string_view text) { append(std::as_bytes(std::span(text))); }
    // The file is complete. Without this call nothing of a regular file is left.
    void publish();

  private:
    void check_stream() const;

    std::filesystem::path path_;
    std::optional<AtomicFile> file_;  // of a regular file
    std::ofstream stream_;            // of anything else
    uint64_t size_ = 0;
};

// A whole result file, a table or a picture.
void write_output_file(const std::filesystem::path& path, std::string_view content);

}  // namespace mixed_kv::trace
