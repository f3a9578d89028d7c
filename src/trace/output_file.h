#pragma once

#include <filesystem>
#include <string_view>

namespace mixed_kv::trace {

// Writes a whole result file, a table or a picture: a regular file appears, or is replaced, in one step and
// only when complete (AtomicFile). A target that exists and is no regular file, such as /dev/stdout or a
// pipe, is written directly. Throws Error with the path and the reason.
void write_output_file(const std::filesystem::path& path, std::string_view content);

}  // namespace mixed_kv::trace
